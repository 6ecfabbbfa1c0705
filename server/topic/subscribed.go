package topic

// Subscribed says where a subscription began.
type Subscribed struct {
	Topic    string
	Position // of the topic at that moment; zero for a pattern

	// After is the offset before the first message that follows: Offset, unless messages of the history come
	// first. With Epoch it is the position of a client that is gone before it has had a message.
	After     uint64
	Recovered bool // nothing is missing after Start.Since
}
