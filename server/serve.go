package server

import "context"

// ListenAndServe serves endpoints at an address, as in [Options.Listen], until ctx ends; then it shuts
// down gracefully and returns nil. It is [New] and [Server.Run] in one, with the default options, for
// programs that want nothing else of the [Server].
func ListenAndServe(ctx context.Context, address string, endpoints ...Endpoint) error {
	s, err := New(Options{Listen: address, Endpoints: endpoints})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
