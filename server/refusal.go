package server

import (
	"slices"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

// Refusal is a request that is answered with an error; [Handler.Refused] gets it. It is valid until Refused returns.
type Refusal struct {
	// Reason is what the refusal is counted as in [Stats]. A change of it counts for nothing.
	Reason RefuseReason

	// Err is what Upgrade has returned, or what it deferred, and otherwise wraps a *[codec.Rejection].
	Err error

	// Response is the answer, and may be changed in any way: a body in JSON goes with a Content-Type in its Header.
	// What is in Header already, such as Retry-After, tells clients what to do next, so it is best appended to. The
	// status must stay from 300 to 599; any other is put back.
	Response codec.Rejection
}

// callRefused returns the answer to a request that is refused, as the application words it. The request may be
// malformed: then it has what was read before the mistake.
func (c *Conn) callRefused(r *Request, why RefuseReason, err error, answer *codec.Rejection) (worded *codec.Rejection) {
	if c.core().Endpoint() == nil || c.endpoint().handler.Refused == nil {
		return answer
	}
	defer func() {
		if p := recover(); p != nil {
			c.panicked("Refused", p)
			worded = answer
		}
	}()
	refusal := &Refusal{Reason: why, Err: err, Response: *answer}
	refusal.Response.Header = slices.Clone(answer.Header) // that of others, too
	c.core().Calls(reactor.HookRefused)
	c.endpoint().handler.Refused(r, refusal)
	if s := refusal.Response.Status; s < 300 || s > 599 {
		refusal.Response.Status = answer.Status
	}
	return &refusal.Response
}
