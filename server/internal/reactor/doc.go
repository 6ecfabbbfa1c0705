// Package reactor has the event loops: they accept connections, read from them, fan messages out to them, write, time
// out and encrypt. It is the only package that knows gnet.
//
// An [Engine] runs the loops. A [Shard] is everything that one loop owns; most of it may be used on the loop only, and
// the fields say what else there is. A [Conn] is a connection. What happens to it is told to the [Owner], which is the
// server. Messages for many connections come from a [Feed] and go to an [Audience].
package reactor
