// Package codec is the WebSocket protocol on bytes: the opening handshake (RFC 6455, section 4), the
// frames a client sends and the frames a server sends (section 5), and permessage-deflate (RFC 7692).
//
// It knows nothing of sockets, goroutines or time. Bytes go in as slices and come out as slices; "need
// more bytes" is a value, not an error; every broken rule is an error of its own that carries the close
// code or the HTTP answer which it deserves. Unless a comment says otherwise, a value is for one
// goroutine at a time.
//
// The way of a connection through the package:
//
//	HeadLen          is the request head complete?
//	Request.Parse    is it HTTP?                  *Rejection otherwise
//	CheckUpgrade     does it ask for WebSocket?   *Rejection otherwise
//	Upgrader.Upgrade the 101 answer, and what was negotiated
//	Decoder.Next     the client's frames          *ProtocolError otherwise
//	AppendFrame      the server's frames; Frame when many connections get the same one
package codec
