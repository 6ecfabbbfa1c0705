package server

import "fmt"

// Some of what is asked for on a connection needs an answer of the cluster. The connection's loop does not wait
// for it: a step of it stands in the connection's line until the answer is there, and everything that is asked
// for after it stands behind.

// step is something that is done on a connection's loop when all before it is done.
type step struct {
	do      func()
	n       int  // bytes that it holds, about
	open    bool // it is for an open connection only
	pending bool // it is not known yet what is to be done
	publish bool // a message is on its way, and do is its reply: others may follow it
}

// What may stand in one connection's line. A client that asks for more is told that it is too much.
const (
	mostSteps     = 4096
	mostStepBytes = 1 << 20
)

// line is a connection's steps. Owned by the loop.
type line struct {
	steps  []*step
	bytes  int
	others int // steps that are no messages on their way

	advancing bool // what is done now was first in line
}

// push puts a step behind the others.
func (l *line) push(s *step) {
	l.steps = append(l.steps, s)
	l.count(s, 1)
}

func (l *line) count(s *step, n int) {
	l.bytes += n * s.n
	if !s.publish {
		l.others += n
	}
}

func (l *line) full() bool { return len(l.steps) >= mostSteps || l.bytes > mostStepBytes }

// standing is the connection's line, or nil while nothing is in it.
func (c *Conn) standing() *line {
	if c.more == nil {
		return nil
	}
	return c.more.line
}

// newLine returns the connection's line, which is made if need be.
func (c *Conn) newLine() *line {
	if c.more == nil {
		c.sh.mu.Lock()
		c.extra()
		c.sh.mu.Unlock()
	}
	if c.more.line == nil {
		c.more.line = &line{}
	}
	return c.more.line
}

// inLine does something when all before it in the connection's line is done, which is now if there is nothing.
func (c *Conn) inLine(s *step) {
	if l := c.standing(); l != nil {
		l.push(s)
		return
	}
	c.perform(s)
}

func (c *Conn) perform(s *step) {
	if !s.open || c.isOpen() {
		c.call(s.do)
	}
}

// stand puts a step into the line for what is done now, which goes on in it: before all else, unless it is not
// done in its turn.
func (c *Conn) stand(publish bool) *step {
	l, s := c.newLine(), &step{pending: true, publish: publish}
	if !l.advancing {
		l.push(s)
		return s
	}
	l.steps = append([]*step{s}, l.steps...)
	l.count(s, 1)
	return s
}

// settle says what is to be done in a step. It may be called from any goroutine, once.
func (c *Conn) settle(s *step, open bool, do func()) {
	c.sh.postDo(c, 0, func() {
		s.do, s.open, s.pending = do, open, false
		c.advance()
	})
}

// advance does what is first in line, as far as it is known.
func (c *Conn) advance() {
	l := c.more.line
	if l == nil {
		return
	}
	l.advancing = true
	for len(l.steps) > 0 && !l.steps[0].pending {
		s := l.steps[0]
		l.steps[0] = nil
		l.steps = l.steps[1:]
		l.count(s, -1)
		c.perform(s)
	}
	l.advancing = false
	if len(l.steps) == 0 {
		c.more.line = nil
	}
}

// topicReady calls then when a topic or a pattern can be subscribed to, or read, which may be at once, as it always is
// without a broker. The error is of the kind of [ErrNoCluster] or [ErrTooManyTopics]. Nothing that is asked for meanwhile
// overtakes it. On a connection that closes meanwhile it is called, too.
func (c *Conn) topicReady(name string, from Start, reads bool, then func(error)) {
	cl := c.sh.srv.hub.cluster
	if cl == nil {
		then(nil)
		return
	}
	var s *step
	ready, err := cl.ready(name, from, reads, func(err error) {
		c.settle(s, false, func() { then(err) })
	}, func() { s = c.stand(false) })
	if ready || err != nil {
		then(err)
	}
}

// ready calls wait when there is something to wait for, and then done when that has ended; otherwise it returns true
// or an error.
// A name that is wrong is ready: that is for somebody else to say.
func (cl *cluster) ready(name string, from Start, reads bool, done func(error), wait func()) (ready bool, err error) {
	pattern, err := checkName(name)
	if err != nil {
		return true, nil
	}
	var src *source
	if pattern {
		src = cl.hub.openPattern(name)
	} else {
		t, err := cl.hub.open(name)
		if err != nil {
			return false, err
		}
		src = &t.source
	}
	defer src.mu.Unlock() // before which done is not called
	if src.link.kept != nil {
		ready, err = cl.awaitKept(src.topic, from, reads, done)
	} else {
		ready = cl.await(src, done)
	}
	if !ready && err == nil {
		wait()
	}
	return ready, err
}

// errNotLoaded is told to who comes to a topic that is not there although he has waited for it.
var errNotLoaded = fmt.Errorf("%w: the topic was let go of", ErrNoCluster)
