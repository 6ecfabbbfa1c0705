package auth

import (
	"carillon/codec"
	"carillon/server/stats"
)

// Refusal is a rejection whose reason for the counters is known.
type Refusal struct {
	Why stats.RefuseReason
	*codec.Rejection
}

func (e *Refusal) Error() string { return e.Reason }
func (e *Refusal) Unwrap() error { return e.Rejection }
