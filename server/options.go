package server

import (
	"log/slog"
	"net/http"
	"time"

	"carillon/server/internal/option"
)

// Size is a number of bytes. As text it is a whole number with one of the units B, KiB, MiB and GiB,
// or "off" for a negative one.
type Size = option.Size

// Options are everything a [Server] can be told. They are the keys of the configuration file.
//
// [Server.Reload] changes most of them while the server runs: see [NeedsRestart].
//
// One rule holds for every field: zero means the default that its comment names, and for a limit or
// a time-out a negative value means off. The zero Options make a server that listens on ":8080" and
// has no endpoint, so at least Endpoints is worth setting.
type Options struct {
	// Listen is the address to serve on: host:port for TCP, or unix:/path for a unix socket. An empty host,
	// or [::], is every address of the machine, IPv4 and IPv6; port 0 lets the kernel choose (see
	// [Server.Addr]). Default ":8080".
	//
	// The socket that a dead server has left at the path is replaced; that of a live one is an error, and so is
	// a file of another kind. On Linux unix:@name is an abstract socket, which has no file.
	Listen string `yaml:"listen"`

	// ListenMode is the file mode of the socket when Listen is a unix socket with a path. Default 0660: the server's
	// user and group may connect.
	ListenMode FileMode `yaml:"listen_mode"`

	// Takeover lets the server listen where another process of the same user listens already: the one that
	// it succeeds, which is about to drain. Until that one gives up the port the kernel spreads new
	// connections over both; a unix socket's are the successor's at once. Linux only. Default false: an
	// address that is taken is an error.
	Takeover bool `yaml:"takeover"`

	// PublicURL is where clients reach the server when that is not Listen, because a proxy or a
	// balancer stands before it: scheme (http, https, ws or wss), host and, if the proxy cuts one off,
	// the path before the endpoints' own, such as "https://chat.example.com/base". Nothing is served
	// differently for it; see [Server.URL]. Default: what Listen says.
	PublicURL string `yaml:"public_url"`

	// TLS makes this server speak it, on Listen; each of Listeners has its own. Default: it does not, and a proxy
	// before it may.
	TLS TLS `yaml:"tls"`

	// ProxyProtocol is for Listen; each of Listeners has its own.
	ProxyProtocol ProxyProtocol `yaml:"proxy_protocol"`

	// Listeners are further addresses to serve on. Default: none.
	Listeners []Listener `yaml:"listeners"`

	// TrustedProxies lists the networks, such as 10.0.0.0/8, of the proxies that speak HTTP before this
	// server; the word unix means every client of a unix socket. Only requests from there may tell the client's
	// address and scheme, by X-Forwarded-For and X-Forwarded-Proto, or by Forwarded (RFC 7239) if there is no
	// X-Forwarded-For: the client is the rightmost address outside these networks. The proxies' own addresses
	// are exempt from the limits per address. Default: none.
	//
	// A proxy listed here must write or append to X-Forwarded-For; one that writes Forwarded instead must
	// remove X-Forwarded-For, or its clients could write it. The same is true of X-Forwarded-Host, which only
	// [Server.URLFor] reads.
	TrustedProxies []string `yaml:"trusted_proxies"`

	// Loops is the number of event loops, each one goroutine with its own epoll or kqueue instance
	// and its own part of the connection table. Default: one for each processor Go may use.
	Loops int `yaml:"loops"`

	// Endpoints are the paths where WebSockets are served. A request for any other path goes to HTTP,
	// or gets 404 when that is nil.
	Endpoints []Endpoint `yaml:"endpoints"`

	// Topics says what topics keep. Default: nothing.
	Topics []TopicRule `yaml:"topics"`

	// Broker joins the server to others, so that topics and endpoints with ModeBroadcast span all of them.
	// Default: none, the server is alone.
	Broker Broker `yaml:"-"`

	// ClusterOptional keeps a server with a Broker ready while it is cut off from its cluster: it accepts clients,
	// serves the history that it has, and refuses what they publish. Default false: /readyz and HealthPath then
	// report "cluster", so balancers send no new clients. See Ready of [topic.Broker].
	ClusterOptional bool `yaml:"cluster_optional"`

	// HTTP serves every request that is for no endpoint, upgrades included, so that pages, an API and
	// WebSockets share one port. It runs off the event loops and may block. Default: none.
	//
	// Its connections belong to an http.Server: HTTP/1.0 and HTTP/1.1, keep-alive, streaming, Hijack. Each costs a
	// goroutine and counts in Limits.MaxConnections while it is open. The time for a head and its size are those of
	// Limits, and so is the time that a client may keep a handler waiting (BodyTimeout, WriteTimeout):
	// http.ResponseController sets others. A connection without a request is closed after 2 minutes, or before that
	// when there are more than 1,024 of them, or its place is needed under MaxConnections. Requests to an endpoint are
	// always the endpoint's, also on a connection that has carried others before. When the server drains, requests that
	// are being served may finish until Drain.Deadline; then they are cut, and what was hijacked with them.
	HTTP http.Handler `yaml:"-"`

	// HealthPath is answered, to GET and HEAD, with 200 and "ok" when new connections are welcome, and with 503 and the
	// word draining, full, maintenance, descriptors, memory or cluster when not: for balancers. It comes before HTTP
	// and may be no endpoint's path. Default "/healthz"; "off" is none.
	HealthPath string `yaml:"health_path"`

	Internal    Internal    `yaml:"internal"`
	Agent       Agent       `yaml:"agent"`
	Limits      Limits      `yaml:"limits"`
	Ping        Ping        `yaml:"ping"`
	Connections Connections `yaml:"connections"`
	Drain       Drain       `yaml:"drain"`

	// Logger receives what an operator should know: start, stop, refusals, panics in handlers. Events
	// of single connections are logged at debug level, at most 100 a second. Values may hold what clients
	// wrote, cut to a few hundred bytes; the handler has to escape them, as those of log/slog do.
	// The event loops log, too, so its destination should not be one that can block: see [LogWriter].
	// Default: slog.Default().
	Logger *slog.Logger `yaml:"-"`

	// LogLost, which may be nil, is asked how many lines of the log could not be written, for the metrics:
	// see [LogWriter.Lost].
	LogLost func() uint64 `yaml:"-"`

	// LogLevel, which may be nil, is the level of Logger's handler, so that the internal interface can
	// show and change it.
	LogLevel *slog.LevelVar `yaml:"-"`
}

// Endpoint is one path and what is served there.
type Endpoint struct {
	// Path is compared with the request's path byte for byte: "/echo" is not "/echo/".
	Path string `yaml:"path"`

	// Mode names what is done with messages. When it is set, Handler has no Message of its own.
	Mode Mode `yaml:"mode"`

	// Handler is the application's. It may only be zero if Mode is set.
	Handler Handler `yaml:"-"`

	// Auth decides which clients may connect. Default: all.
	Auth Auth `yaml:"auth"`

	// Topics rules what clients may do, with ModeTopics.
	Topics TopicAccess `yaml:"topics"`

	// Origins lists the origins, besides the server's own, whose pages may connect. A browser lets any page
	// open a WebSocket to any server, with the user's cookies, and only names the page's origin in the header
	// Origin; so a request with another origin is refused with 403. The server's own is the one with the host and
	// port of the request's Host, and that of Options.PublicURL. Requests without an Origin do not come from
	// a page of another site, and are accepted. A proxy must leave Host as it was, or set PublicURL. The schemes
	// ws and wss, which libraries that are no browsers send, are read as http and https.
	//
	// Scripts of these origins may read server-sent events (CORS), with cookies if the origin is listed by its name or
	// domain. Each refused origin is logged once a minute.
	//
	// An entry is https://example.com or https://example.com:8443; https://*.example.com, which is each
	// host below example.com and not example.com itself; null, which sandboxed pages and files have; or *,
	// which is all, for an endpoint that has nothing to do with cookies or looks at Origin in
	// [Handler.Upgrade]. Default: none.
	Origins []string `yaml:"origins"`

	// Subprotocols are the values of Sec-WebSocket-Protocol that the endpoint speaks (RFC 6455,
	// section 1.9). The first of the client's list that stands here is chosen; when none does, the
	// connection is accepted without one. At most 254.
	Subprotocols []string `yaml:"subprotocols"`

	Compression  Compression  `yaml:"compression"`
	SlowConsumer SlowConsumer `yaml:"slow_consumer"`
}

// Mode is a built-in behaviour of an endpoint.
type Mode string

const (
	ModeEcho      Mode = "echo"      // each message goes back to its sender
	ModeBroadcast Mode = "broadcast" // each message goes to every connection of the endpoint
	ModeTopics    Mode = "topics"    // clients subscribe to topics, as docs/protocol.md says
)

// Compression is permessage-deflate (RFC 7692) on one endpoint. Both directions are negotiated without context
// takeover, so that an idle connection costs no window and a broadcast is compressed once for all who negotiated it.
// For clients that ask for a smaller window (server_max_window_bits), messages that are larger than that are compressed
// once for each size.
type Compression struct {
	// Enabled turns the extension on for clients that offer it. It costs the server about 5 us of
	// processor time for each KiB of a message, once per message.
	Enabled bool `yaml:"enabled"`

	// Threshold is the payload size below which a message goes out uncompressed: deflate makes small
	// messages larger. Default 512 B; negative compresses everything.
	Threshold Size `yaml:"threshold"`

	// Level is the effort, 1 (fastest) to 6 (smallest). Default 1. 7 to 9 are accepted and mean 6: beyond it
	// a client could choose text that takes seconds to compress.
	Level int `yaml:"level"`
}

// SlowConsumer says what happens to a connection that does not read as fast as it is sent to. What
// its socket does not take waits in its outbox: references to frames that all receivers share, and copies of
// what is for this connection alone, such as echoes and replies.
type SlowConsumer struct {
	// Policy is what to do when the outbox is full. Default [PolicyClose].
	Policy Policy `yaml:"policy"`

	// MaxQueue is the memory in bytes that what waits for one connection may take: the bytes of the frames as they
	// go out, and 40 B for each frame. Copies of up to 256 B that follow one another share an entry, so that a queue
	// of 10-byte echoes holds nearly MaxQueue bytes of them. A frame that many receivers share counts in full for
	// each of them, because it stays in memory until the slowest has it. The memory that is really taken is at most
	// a quarter more, and 12 KiB for each connection.
	//
	// A single message that is larger still goes out when nothing waits before it. Replies to requests are never
	// dropped: under the policies that drop, messages make room for them, and a client for which replies alone are
	// more than MaxQueue is closed. What does not count: the history that a client asks for with a subscription, and a
	// reply of 4 KiB or more, of which one waits at most, because the next such request is answered when the client has
	// read it. Default 1 MiB; negative is no limit, which lets one frozen client hold any amount of memory.
	MaxQueue Size `yaml:"max_queue"`

	// CloseCode is sent by PolicyClose: 1013 (try again later), the default, or 1008 (policy
	// violation) for clients that should not come back by themselves.
	CloseCode int `yaml:"close_code"`
}

// Policy decides about the messages for a slow consumer.
type Policy string

const (
	PolicyClose      Policy = "close"       // discard what waits and close with CloseCode
	PolicyDropOldest Policy = "drop_oldest" // make room by discarding the messages that wait longest
	PolicyDropNewest Policy = "drop_newest" // discard the message that does not fit
	PolicyLatest     Policy = "latest"      // keep only the newest message that waits, whatever its size
)

// Limits bound what one client, or all of them, can cost.
type Limits struct {
	// MaxConnections is how many sockets may be open, handshakes included. A client beyond it takes the place of
	// one that has not sent its request, or of one that has its answer and does not close; if there is none, it is
	// answered 503 with Retry-After. Default: what the descriptor limit allows, less some headroom.
	MaxConnections int `yaml:"max_connections"`

	// MaxHead is the size of a request head, request line and headers together; above it the answer
	// is 431. Default 8 KiB; it cannot be turned off.
	MaxHead Size `yaml:"max_head"`

	// HandshakeTimeout is the time from accept to the last byte of the head, TLS included; after it the
	// answer is 408. Bytes that dribble in do not extend it. A decision that is deferred has as long again, from
	// zero; see [Request.Defer]. Default 10 s.
	HandshakeTimeout time.Duration `yaml:"handshake_timeout"`

	// MaxTLSHandshakes is how many TLS handshakes may be under way at once, each of which takes about 30 KB. Beyond
	// it the one that has been waiting for its client for longest is closed in favour of a newcomer: at once if its
	// address has more of them than the newcomer's, else after a second. HandshakeTimeout is for the TLS handshake
	// and the request together. Default 1024; negative is no limit.
	MaxTLSHandshakes int `yaml:"max_tls_handshakes"`

	// MaxMessage is the size of a message, all fragments together and after decompression; a larger
	// one closes the connection with 1009 before any of its payload is kept. A message that is published is also too
	// large if it would be more than twice the limit in JSON or in an event stream. Default 1 MiB.
	MaxMessage Size `yaml:"max_message"`

	// MaxFragments is the number of frames a message may come in; more close the connection with
	// 1008. Default 1024.
	MaxFragments int `yaml:"max_fragments"`

	// IdleTimeout closes a connection with 1001 when no message came from it for so long; pings and
	// pongs do not count. Default off, since a subscriber may have nothing to say.
	IdleTimeout time.Duration `yaml:"idle_timeout"`

	// WriteTimeout cuts a connection off whose socket took no byte for so long although something
	// waits for it. Default 30 s. Answers of Options.HTTP have to be taken at 500 bytes a second; a handler that sets
	// a write deadline with http.ResponseController has its own time instead, until its request ends.
	WriteTimeout time.Duration `yaml:"write_timeout"`

	// BodyTimeout is how long the body of a request for Options.HTTP may keep the server waiting: each 500 bytes
	// that come give back a second of that, up to all of it. A handler that sets a read deadline with
	// http.ResponseController has its own time instead, until its request ends. Default 30 s.
	BodyTimeout time.Duration `yaml:"body_timeout"`

	// CloseTimeout is how long a closing handshake (RFC 6455, section 7.1) may take before the socket
	// is closed all the same. It begins anew while a slow client still reads what was sent before. Default 5 s; it
	// cannot be turned off. While something waits for a peer that has closed its side, WriteTimeout holds if that is
	// longer.
	CloseTimeout time.Duration `yaml:"close_timeout"`

	// MaxBacklog is the number of bytes that Send and Broadcast may leave for one loop before it has looked at them;
	// above it they return [ErrOverloaded]. Each message counts with about 128 bytes more, and one for a topic with as
	// many for each pattern that matches it: they take that in memory. Default 64 MiB.
	MaxBacklog Size `yaml:"max_backlog"`

	// MaxTopics is how many topics may exist at once. One costs about 400 B besides its history. It is
	// forgotten a minute after it has lost its last subscriber and its history, and sooner when that makes room
	// for another one, or when it never had a message. Default 1,000,000; negative is no limit.
	MaxTopics int `yaml:"max_topics"`

	// MaxKeyMemory is how many bytes the idempotency keys of publications take up: 112 for each, and 128 for
	// each publisher. Above it keys are forgotten before their five minutes are over, the oldest of the
	// publisher with most of them first; to publish again with one of these delivers the message twice. Default
	// 64 MiB, about 600,000 keys; negative is no limit.
	MaxKeyMemory Size `yaml:"max_key_memory"`

	// DecompressedBytesPerSecond bounds what the compressed messages of a WebSocket may become beyond 32 times
	// their own size; more close it with 1008. It counts the work of decompression: each byte that is read or
	// made, and up to 272 for each block of DEFLATE. What ten seconds allow may come at once. Default 1 MiB, so
	// that a client may go on sending text that compresses to a thirtieth as fast as it likes, but 1 KiB that
	// becomes 1 MiB only once a second; negative is no limit.
	DecompressedBytesPerSecond Size `yaml:"decompressed_bytes_per_second"`

	// The limits from here on are off by default, because any number of clients may share an address,
	// such as that of an office or a mobile network, and only the application knows how much its clients send.
	// A negative value is off, too.

	// MaxConnectionsPerAddress is how many sockets one client address may have open, an IPv6 address being
	// its network of 64 bits; above it the answer is 429 with Retry-After. What comes through TrustedProxies
	// counts once its request has been read, and not while it is plain HTTP.
	MaxConnectionsPerAddress int `yaml:"max_connections_per_address"`

	// HandshakesPerSecond is how many requests for endpoints are looked at in each second, at most as many
	// at once; above it the answer is 503 with Retry-After. It keeps clients that all come back at the same
	// time from taking the processor away from those that are there.
	HandshakesPerSecond int `yaml:"handshakes_per_second"`

	// HandshakesPerSecondPerAddress is the same for one client address, which is answered 429. Connections that begin
	// with a request for Options.HTTP count, too.
	HandshakesPerSecondPerAddress int `yaml:"handshakes_per_second_per_address"`

	// MessagesPerSecond is how many messages and pings a WebSocket may send; more close it with 1008. What
	// ten seconds allow may come at once, so that a client whose network was away for a moment is not closed
	// for what it could not send meanwhile.
	MessagesPerSecond int `yaml:"messages_per_second"`

	// BytesPerSecond is the same for the bytes that come in, before decompression. So a message that is
	// larger than what ten seconds allow has to come slowly.
	BytesPerSecond Size `yaml:"bytes_per_second"`

	// PublishesPerSecond is how many messages a client may publish, to topics or with ModeBroadcast, with the
	// same burst. More are refused as rate_limited in the JSON protocol, and otherwise close the connection
	// with 1008.
	PublishesPerSecond int `yaml:"publishes_per_second"`

	// RequestsPerSecond is how many other requests of the JSON protocol a client may make (subscribe,
	// unsubscribe, history, presence, refresh), with the same burst. More are refused as rate_limited.
	RequestsPerSecond int `yaml:"requests_per_second"`

	// MaxMemory is how much memory the Go runtime may have in use: all that it has of the system, without what
	// it has free and without garbage that was not collected yet. It is looked at every 10 ms to 1 s, the more
	// often the less room there is. Above it new connections are answered 503 with Retry-After, health checks say
	// that none are wanted, and the connections that hold most are closed with 1013 ([CutMemory]): slow consumers,
	// and those that have sent much of a message that is not complete. Connections that hold less than 16 KiB stay,
	// and so does what handlers and histories keep, so this is no hard bound.
	//
	// The same is done when the cgroup of the process has used 90 % of its memory limit, whatever uses it: the
	// kernel's memory for sockets counts there.
	//
	// Default: 80 % of the lowest of GOMEMLIMIT, the memory limits of the cgroups that the process is in, and the
	// physical memory; see [Limits.EffectiveMaxMemory] and [Server.MaxMemory]. Negative is off, for the cgroup's
	// limit, too.
	MaxMemory Size `yaml:"max_memory"`
}

// Ping keeps quiet connections alive through balancers and finds those that are gone.
type Ping struct {
	// Interval is how long nothing may come from a client before it is sent a ping. Most balancers
	// cut a connection that is quiet for 60 s. Default 25 s; negative sends none.
	Interval time.Duration `yaml:"interval"`

	// Jitter is the part of Interval, 0 to 1, by which a connection's own interval may be shorter, so
	// that many connections opened at once are not pinged at once. Default 0.2; negative is none.
	Jitter float64 `yaml:"jitter"`

	// Timeout is how long after a ping something must come, the pong or anything else; otherwise the
	// connection is closed with 1001. It begins anew while a slow client still reads what was sent before the ping.
	// Default 10 s; negative waits for ever.
	Timeout time.Duration `yaml:"timeout"`

	// LBIdleTimeout is after how long a balancer before this server cuts a connection on which nothing is
	// sent. Nothing is done differently for it: [Options.Warnings] tells when the pings come too late, and
	// the server logs that at its start. Default off: unknown.
	LBIdleTimeout time.Duration `yaml:"lb_idle_timeout"`
}
