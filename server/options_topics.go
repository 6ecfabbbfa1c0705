package server

// TopicAccess rules what clients of an endpoint with [ModeTopics] may do by themselves. What the
// application does for them with [Conn.Subscribe] and [Server.Publish] is not restricted.
type TopicAccess struct {
	// Subscribe lists the topics, as names or patterns, that clients may subscribe to. Default: all.
	Subscribe []string `yaml:"subscribe"`

	// Publish lists those that clients may publish to. Default: none.
	Publish []string `yaml:"publish"`

	// Patterns lets clients subscribe to patterns, as far as Subscribe covers them.
	Patterns bool `yaml:"patterns"`

	// Presence lets clients ask who is subscribed to a topic.
	Presence bool `yaml:"presence"`

	// MaxSubscriptions is how many topics and patterns one connection may have. Default 128; negative
	// is no limit.
	MaxSubscriptions int `yaml:"max_subscriptions"`

	// MaxPatterns is how many of them may be patterns. A message is compared with all patterns that begin as its topic
	// does, which takes about 50 ns for each. Default 16; negative is no limit.
	MaxPatterns int `yaml:"max_patterns"`
}
