// Package hub has the topics of a server: it gives messages their offsets, keeps histories, subscribes connections, and
// remembers idempotency keys. In a cluster it follows topics at the broker and relays messages.
//
// A [Hub] is the broker of one process. Messages are posted to the loops of package reactor that have subscribers,
// under the lock of their [Source], so that all loops see one order. It knows the server as its [Owner] only.
package hub
