package envelope

// Subscribed says where a subscription began.
type Subscribed struct {
	Topic     string  `json:"topic"`
	Offset    *uint64 `json:"offset,omitempty"`
	Epoch     string  `json:"epoch,omitempty"`
	After     *uint64 `json:"after,omitempty"` // the offset before what follows
	Recovered *bool   `json:"recovered,omitempty"`
}

// AppendEvent appends the reply as a server-sent event. Its id is the position from which an EventSource goes on that
// has had no message when it comes back. A pattern has none, but an EventSource that sends any id is told that messages
// may be missing.
func (r *Subscribed) AppendEvent(b []byte) []byte {
	id := NoEventID
	if r.After != nil {
		id = EventID(r.Epoch, *r.After)
	}
	return AppendEvent(b, "subscribed", id, AppendJSON(nil, r))
}
