package server

// loopEndpoint is an endpoint as event loops see it. Immutable.
type loopEndpoint struct {
	Path         string
	Subprotocols []string

	engine     *engine
	index      int  // its place among the endpoints
	firstTable int  // the first of its tables in every shard: there is one for each framing
	framings   int  // that it serves: the raw one, or all
	deflates   bool // permessage-deflate may be negotiated
	sites      [numHooks]callSite

	// What is known of the time that a message takes.
	isCustom bool // nothing: the application handles it
	isSteady bool // that it is always the same, for messages that are not compressed
}

// settings are those in force.
func (ep *loopEndpoint) settings() *loopEndpointSettings {
	return &ep.engine.settings().endpoints[ep.index]
}

// settings are those of the connection's endpoint.
func (c *Conn) settings() *loopEndpointSettings { return c.ep.settings() }
