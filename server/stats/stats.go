// Package stats has what a server counts: counters and histograms, and the reasons for what it drops, refuses and cuts.
package stats

// DropReason says why a message will never reach one of its receivers. The set is closed.
type DropReason uint8

const (
	DropOldest       DropReason = iota // the receiver was slow, and the policy drop_oldest made room for a newer message
	DropNewest                         // the receiver was slow, and the policy drop_newest had no room for this message
	DropConflated                      // the receiver was slow, and the policy latest keeps a newer message in its place
	DropSlowConsumer                   // the receiver was slow and closed for it; these messages waited
	DropWriteTimeout                   // the receiver's socket took nothing for the write time-out; these waited
	DropClosed                         // the receiver was gone, or had begun to close, when the message was its turn
	DropShutdown                       // the server stopped before a slow receiver had taken them
	DropOverloaded                     // the loop had too much to look at, so Send, Broadcast or Publish refused the message as a whole
	DropMemory                         // the receiver was closed because limits.max_memory is reached; these messages waited
	DropHistory                        // the receiver was slow to read a topic's history, which dropped the message before it was sent
	DropClusterGap                     // another server's message did not come, so none of this one's receivers got it: counted once
)

// NumDropReasons is the number of reasons.
const NumDropReasons = DropClusterGap + 1

var dropNames = [NumDropReasons]string{
	"drop_oldest", "drop_newest", "conflated", "slow_consumer", "write_timeout", "closed", "shutdown", "overloaded",
	"memory", "history",
	"cluster_gap",
}

// String gives the name used in counters.
func (r DropReason) String() string { return dropNames[r] }

// RefuseReason says why a connection did not become a WebSocket. The set is closed.
type RefuseReason uint8

const (
	RefuseMalformed         RefuseReason = iota // 400: the head breaks a rule of HTTP or of the handshake
	RefuseNotFound                              // 404: no endpoint has this path, and there is no Options.HTTP
	RefuseMethod                                // 405: not GET
	RefuseTimeout                               // 408: the head did not come in time
	RefuseNoUpgrade                             // 426: not an upgrade, or another version of the protocol
	RefuseHeadTooLong                           // 431: the head is larger than the limit
	RefuseVersion                               // 505: not HTTP/1.1
	RefuseFull                                  // 503: limits.max_connections is reached
	RefuseDraining                              // 503: the server shuts down
	RefuseTopic                                 // 400 or 403: a topic that is none, or that clients may not have
	RefuseHandler                               // the application's Upgrade said no
	RefusePanic                                 // 500: the application's Upgrade panicked
	RefuseLost                                  // the client went away before its head was complete
	RefuseDescriptors                           // 503: no descriptor was left, to accept the connection or to move it to Options.HTTP or back, or from a unix socket to a loop
	RefuseOrigin                                // 403: a page of another origin, which may not connect here
	RefuseAddressFull                           // 429: limits.max_connections_per_address is reached
	RefuseHandshakes                            // 503: limits.handshakes_per_second is reached
	RefuseAddressHandshakes                     // 429: limits.handshakes_per_second_per_address is reached
	RefuseProxyPeer                             // closed: a PROXY header is required, and none is believed from this address
	RefuseProxyMissing                          // closed: a PROXY header is required, and none came, or not in time
	RefuseProxyMalformed                        // closed: the PROXY header breaks a rule, or has begun and did not end in time

	RefuseNoToken        // 401: there is no token, and one is required
	RefuseTokenMalformed // 401: the token is none, or it says what no token can
	RefuseTokenAlgorithm // 401: the token is signed by an algorithm that the endpoint does not take
	RefuseTokenKey       // 401, or 503 while keys are fetched: no key is known by the token's name for it
	RefuseTokenSignature // 401: no key of the endpoint has signed the token
	RefuseTokenExpired   // 401: the token's time is up
	RefuseTokenEarly     // 401: the token is not valid yet
	RefuseTokenIssuer    // 401: the token has another issuer
	RefuseTokenAudience  // 401: the token has another audience
	RefuseNoKeys         // 503: no keys could be fetched so far
	RefuseHook           // the connect hook said no
	RefuseHookFailed     // 503: the connect hook did not answer, or not as it should
	RefuseHookBusy       // 503: as many requests wait for the connect hook as may
	RefuseUndecided      // 503: a deferred decision did not come in time
	RefuseEarly          // 400: too much came before a deferred decision
	RefuseMemory         // 503: limits.max_memory, or 90 % of the limit of the cgroup, is reached

	RefuseTLS            // 400: TLS, where none is spoken
	RefusePlainText      // 400: a request without TLS, where TLS is spoken
	RefuseTLSHello       // closed: what came is not the beginning of TLS
	RefuseTLSVersion     // alert: no version, cipher suite or curve in common
	RefuseTLSProtocol    // alert: the client asks for another protocol than HTTP/1.1 (ALPN)
	RefuseTLSCertificate // alert: the client's certificate is not good, or it has none and must have one
	RefuseTLSAlert       // the client ended the TLS handshake, mostly because it does not trust the certificate
	RefuseTLSFailed      // alert: the TLS handshake failed for another reason
	RefuseTLSTimeout     // closed: the TLS handshake was not done in time
	RefuseTLSUnread      // closed: more came during a TLS handshake than can belong to it
	RefuseTLSEvicted     // closed: limits.max_tls_handshakes is reached, and the client did not answer
	RefuseTLSRecords     // closed: too many TLS records without data came before the request
	RefuseEvicted        // 503, or closed with TLS: limits.max_connections is reached, and no request came
)

// NumRefuseReasons is the number of reasons.
const NumRefuseReasons = RefuseEvicted + 1

var refuseNames = [NumRefuseReasons]string{
	"malformed", "not_found", "method", "timeout", "no_upgrade", "head_too_long", "http_version", "full", "draining",
	"topic", "handler", "panic", "lost", "descriptors",
	"origin", "address_full", "handshakes", "address_handshakes", "proxy_peer", "proxy_missing", "proxy_malformed",
	"no_token", "token_malformed", "token_algorithm", "token_key", "token_signature", "token_expired", "token_early",
	"token_issuer", "token_audience", "no_keys", "hook", "hook_failed", "hook_busy", "undecided", "early",
	"memory",
	"tls", "plain_text", "tls_hello", "tls_version", "tls_protocol", "tls_certificate", "tls_alert", "tls_failed", "tls_timeout", "tls_unread",
	"tls_evicted", "tls_records", "evicted",
}

// String gives the name used in counters.
func (r RefuseReason) String() string { return refuseNames[r] }

// CutReason says why the server ended a WebSocket by itself, although nothing was wrong with the protocol and
// the server goes on. The set is closed.
type CutReason uint8

const (
	CutSlowConsumer      CutReason = iota // 1013 or 1008: more than slow_consumer.max_queue waited
	CutWriteTimeout                       // 1006: the socket took nothing for limits.write_timeout
	CutMemory                             // 1013: memory is short, and much waited, or much of a message had come that was not complete
	CutMessageRate                        // 1008: limits.messages_per_second
	CutByteRate                           // 1008: limits.bytes_per_second
	CutDecompressionRate                  // 1008: limits.decompressed_bytes_per_second
	CutPublishRate                        // 1008: limits.publishes_per_second
	CutPingTimeout                        // 1001: no answer to a ping
	CutIdle                               // 1001: limits.idle_timeout
	CutMaxAge                             // 1001: connections.max_age
	CutExpired                            // 4401: Identity.Expires
	CutMistakes                           // 1008: too many requests that were refused
	CutTLSRecords                         // 1006: too many TLS records without data
)

// NumCutReasons is the number of reasons.
const NumCutReasons = CutTLSRecords + 1

var cutNames = [NumCutReasons]string{
	"slow_consumer", "write_timeout", "memory", "message_rate", "byte_rate", "decompression_rate", "publish_rate", "ping_timeout", "idle", "max_age", "expired", "mistakes", "tls_records",
}

// String gives the name used in counters.
func (r CutReason) String() string { return cutNames[r] }

// PlainCutReason says why the server closed a connection that Options.HTTP had. The set is closed.
type PlainCutReason uint8

const (
	PlainCutBodyTimeout  PlainCutReason = iota // a body did not arrive within limits.body_timeout
	PlainCutWriteTimeout                       // the client took too little of an answer within limits.write_timeout
	PlainCutIdle                               // it carried no request, and others needed its place
)

// NumPlainCutReasons is the number of reasons.
const NumPlainCutReasons = PlainCutIdle + 1

var plainCutNames = [NumPlainCutReasons]string{"body_timeout", "write_timeout", "idle"}

// String gives the name used in counters.
func (r PlainCutReason) String() string { return plainCutNames[r] }
