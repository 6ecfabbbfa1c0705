// Package cluster joins servers by NATS: its [Broker] is a [topic.Broker] for the options of a server.
//
// Everything is below the subject carillon.NAME, where NAME is the cluster's:
//
//	p.TOPIC              transient messages: core NATS, from the publisher's node to those with subscribers
//	b.PATH               broadcasts to an endpoint, the path in hexadecimal
//	k.RULE.EPOCH.TOPIC   messages for topics with history: a JetStream stream for each topic rule stores them,
//	r.RULE.EPOCH.TOPIC   and publishes them again here, with their sequence and that of the one before
//	n                    heartbeats of the nodes
//	q, q.NODE            questions to all nodes, or one
//	s                    asks every node for an answer at once, so that a subscription is known to have arrived
//
// So a live message costs a node one copy, and only if it has a subscriber; a topic's offset is the sequence of
// its message in the stream, and holes show in the sequence of the one before. A stream that is made again has another
// epoch, and so other subjects: messages for the old one have no subscribers, and no offset passes for another's.
package cluster
