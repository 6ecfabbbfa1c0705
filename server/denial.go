package server

import "carillon/codec"

// denial is a rejection whose reason for the counters is known.
type denial struct {
	why RefuseReason
	*codec.Rejection
}

func (e *denial) Error() string { return e.Reason }
func (e *denial) Unwrap() error { return e.Rejection }
