package reactor

// LoopEndpoint is an endpoint as event loops see it. Immutable.
type LoopEndpoint struct {
	Path         string
	Subprotocols []string

	Engine     *Engine
	Index      int  // its place among the endpoints
	FirstTable int  // the first of its tables in every shard: there is one for each framing
	Framings   int  // that it serves: the raw one, or all
	Deflates   bool // permessage-deflate may be negotiated
	Sites      [numHooks]callSite

	// What is known of the time that a message takes.
	IsCustom bool // nothing: the application handles it
	IsSteady bool // that it is always the same, for messages that are not compressed
}

// settings are those in force.
func (ep *LoopEndpoint) settings() *LoopEndpointSettings {
	return &ep.Engine.Settings().Endpoints[ep.Index]
}

// Settings are those of the connection's endpoint.
func (c *Conn) Settings() *LoopEndpointSettings { return c.ep.settings() }
