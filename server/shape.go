package server

import "carillon/server/internal/auth"

// shape is an [auth.Shape] as the internal HTTP interface uses it.
type shape struct{ *auth.Shape }

type shapeRules = auth.ShapeRules

func shapeOf[T any](rules shapeRules) *shape { return &shape{auth.ShapeOf[T](rules)} }

func (s *shape) check(text []byte) error            { return s.Check(text) }
func (s *shape) unmarshal(text []byte, v any) error { return s.Unmarshal(text, v) }
