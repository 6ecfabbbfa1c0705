package admin

import (
	"io"
	"log/slog"
	"net/http"
	"strings"

	"carillon/server/internal/strictjson"
	"carillon/server/topic"
)

// order reads what a PUT asks for: a JSON object, strictly, because a misspelt switch must not be taken for
// one that was set.
func (a *api) order(w http.ResponseWriter, r *http.Request, like *strictjson.Shape, to any) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	format, err := formatOf(r)
	if err != nil {
		return err
	}
	if format != topic.FormatJSON && r.Header.Get("Content-Type") != "" {
		return problemMediaType.because("Content-Type is %.40q: expected application/json", r.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxOrder))
	if err != nil {
		return unread(err)
	}
	if err := like.Unmarshal(body, to); err != nil {
		return bad("the body is not the expected JSON object: %.200s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// maxOrder bounds the body of a PUT.
const maxOrder = 1 << 10

// logState is what /v1/log shows and takes.
type logState struct {
	Level string `json:"level"`
}

var logShape = strictjson.ShapeOf[logState](strictjson.Rules{})

// The levels that can be set.
var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

func (a *api) logLevel(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	return a.showLogLevel(w)
}

func (a *api) showLogLevel(w http.ResponseWriter) error {
	level, ok := a.backend.LogLevel()
	if !ok {
		return problemNotOffered.because("the application does not expose its log level: see Options.LogLevel")
	}
	return reply(w, logState{strings.ToLower(level.String())})
}

func (a *api) setLogLevel(w http.ResponseWriter, r *http.Request) error {
	var state logState
	if err := a.order(w, r, logShape, &state); err != nil {
		return err
	}
	level, known := logLevels[state.Level]
	if !known {
		return bad("level is %.40q: expected debug, info, warn or error", state.Level)
	}
	a.backend.SetLogLevel(r.Context(), level)
	return a.showLogLevel(w)
}

func (a *api) showMetrics(w http.ResponseWriter, r *http.Request) error {
	a.metrics.ServeHTTP(w, r)
	return nil
}

func (a *api) version(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	return reply(w, a.backend.Build())
}
