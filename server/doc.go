// Package server holds WebSocket connections on a few event loops and sends messages to many of them at
// once.
//
// # What to read first
//
// [ListenAndServe] runs a server in one call. For more control, [New] takes [Options], whose zero values are
// sensible defaults, and returns a [Server] to run. An [Endpoint] is a path that the server serves, either with
// a built-in behaviour, its [Mode], or with the [Handler] of an application, which is called for what happens
// on each [Conn].
//
// # To one, to some, to all
//
// [Conn.Send] is for one connection, [Server.Broadcast] for all connections of an endpoint, and
// [Server.Publish] for those that subscribed to a topic, by themselves on an endpoint with [ModeTopics] or
// because the application called [Conn.Subscribe]. Topics number their messages and may keep the newest of
// them, so that a client can resume where it left off: see [TopicRule]. [Server.Conns] iterates over the open
// connections.
//
// None of these waits for a receiver. What does not fit into a slow receiver's socket is queued, within the
// bounds of [SlowConsumer]; each message that is not delivered is counted by reason in [Stats].
//
// # What runs where
//
// Every event loop is one goroutine and owns a shard: its part of the connection table, its mailbox and
// its counters. A connection lives and dies on one loop. The functions of a [Handler], and those that are
// passed as Done, are called there, one at a time for each connection, and must not block, because all
// connections of the loop would wait; for slow work they start a goroutine. From there [Conn.Do] comes back to the
// loop, and [Conn.After] does so later.
//
// The methods of [Server] and [Conn] may be called from any goroutine, handlers included. What they want of
// a connection goes through the mailbox of its loop, so what one goroutine sends arrives in that order.
//
// # Whose bytes
//
// A payload that a handler gets, and a [Request], are valid until the handler returns; then other clients' messages
// take their place, and under the race detector what they held is overwritten at once. A payload that is sent is copied
// before the call returns. A [codec.Frame] is a message that is encoded once for any number of receivers and is never
// copied; [NewJSONFrame] makes one.
//
// # Errors
//
// Options that cannot be used are reported by New, all at once, each as an *[OptionError]. Methods that
// send fail with [ErrClosed], [ErrOverloaded] and a few others that they name. [Handler.Error] hears what
// goes wrong on a connection, and Handler.Close how it ended.
package server
