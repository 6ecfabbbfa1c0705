package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// Agent is a port for HAProxy's agent checks: it tells each connection in one line how many new
// connections this server wants, as a share of the weight that HAProxy's configuration gives it.
//
// The line is "up 87%" when 87% of Limits.MaxConnections are free, "up 0%" when the server is full or over
// Limits.MaxMemory, "drain" when it shuts down, "maint" under [Server.SetMaintenance], "down" before it
// has started. HAProxy keeps a server in the state of "drain" or "maint" until it is told "ready", so that
// word is added for a minute after the start and after maintenance; later it would undo what an operator
// has told HAProxy itself.
type Agent struct {
	// Listen is the TCP address of the port, as host:port. It tells nothing but that line, takes no
	// commands, and needs no token; one at every address of the machine is warned of. Default "off".
	Listen string `yaml:"listen"`
}

func (o *Agent) resolve(c *checker, taken []namedAddress) {
	if o.Listen == "" || o.Listen == optionOff {
		o.Listen = optionOff
		return
	}
	if !c.Address("agent.listen", o.Listen, "127.0.0.1:8082, or "+optionOff) {
		return
	}
	c.distinct("agent.listen", o.Listen, taken)
}

// What the port takes of a client, and for how long.
const (
	maxAgentConns = 16
	agentTime     = 2 * time.Second
	readyAfter    = time.Minute // for how long "ready" is said
)

func (o *Agent) most() int {
	if o.Listen == optionOff {
		return 0
	}
	return maxAgentConns
}

// agent answers agent checks. A nil one is off.
type agent struct {
	srv      *Server
	listener net.Listener
	slots    chan struct{} // has a value for each connection
	closed   chan struct{}
	once     sync.Once
}

func (s *Server) listenAgent() (*agent, error) {
	if s.opts().Agent.Listen == optionOff {
		return nil, nil
	}
	l, err := net.Listen("tcp", s.opts().Agent.Listen)
	if err != nil {
		return nil, fmt.Errorf("agent.listen: %w", err)
	}
	a := &agent{srv: s, listener: l, slots: make(chan struct{}, maxAgentConns), closed: make(chan struct{})}
	go a.serve()
	return a, nil
}

// AgentAddr is the address of the port for agent checks: see [Agent]. It is nil before Started, and when
// the port is off.
func (s *Server) AgentAddr() net.Addr {
	select {
	case <-s.engine.Started:
		if s.agent != nil {
			return s.agent.listener.Addr()
		}
	default:
	}
	return nil
}

func (a *agent) serve() {
	for {
		a.slots <- struct{}{}
		conn, err := a.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptor is left: others will be
			<-a.slots
			select {
			case <-a.closed:
				return
			case <-time.After(time.Second):
				continue
			}
		}
		go func() {
			defer func() { <-a.slots }()
			a.answer(conn)
		}()
	}
}

// answer waits for the client's end, so that nothing which the client has sent makes the kernel reset the
// connection before the line has been read.
func (a *agent) answer(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(agentTime))
	if _, err := io.WriteString(conn, a.srv.agentLine()); err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 4<<10))
}

func (a *agent) close() {
	if a != nil {
		a.once.Do(func() {
			close(a.closed)
			_ = a.listener.Close()
		})
	}
}

// agentLine is the server's state in the words of HAProxy (its manual, agent-check).
func (s *Server) agentLine() string {
	weight := 100
	for _, c := range s.unready() {
		switch c.Reason {
		case "starting":
			return "down # starting\n"
		case "draining":
			return "drain\n"
		case "maintenance":
			return "maint\n"
		default:
			weight = 0
		}
	}
	if weight > 0 {
		most := int64(s.settings().loops.MaxSockets)
		weight = int(max((most-s.engine.Sockets.Load())*100/most, 1))
	}
	line := "up "
	if s.engine.Uptime()-time.Duration(s.ops.settled.Load()) < readyAfter {
		line = "ready up "
	}
	return line + strconv.Itoa(weight) + "%\n"
}
