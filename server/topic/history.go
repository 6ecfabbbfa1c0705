package topic

// Position is a place in a topic's stream: after the message with this offset.
type Position struct {
	Offset uint64 `json:"offset"`
	Epoch  string `json:"epoch"` // offsets are good for one epoch, which ends when the topic is forgotten
}

// Start is where a subscriber begins: after a position, with the newest messages, or, if it is zero, with the next
// message.
type Start struct {
	Since *Position
	Last  int
}

// HistoryPage is a part of a topic's history.
type HistoryPage struct {
	Position            // of the topic now
	Recovered bool      // nothing is missing between the start and the first message
	Messages  []Message // the oldest first
}

// Info describes a topic at one moment.
type Info struct {
	Topic string `json:"topic"`
	Position
	Subscribers  int   `json:"subscribers"`  // of this topic itself, those of patterns not included
	History      int   `json:"history"`      // messages that are kept
	HistoryBytes int   `json:"historyBytes"` // of their payloads
	Oldest       int64 `json:"oldest"`       // the offset of the oldest message that is kept, 0 if there is none
}
