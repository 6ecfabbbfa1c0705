package admin

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"carillon/server/internal/envelope"
	"carillon/server/topic"
)

// problem is an error of the HTTP interface (RFC 9457). It is an error too, so that it can be returned.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`

	Reasons []Condition `json:"reasons,omitempty"` // of a server that is not ready or not alive

	header [][2]string
}

func (p *problem) Error() string {
	if p.Detail == "" {
		return p.Title
	}
	return p.Title + ": " + p.Detail
}

// because returns the problem with what was wrong this time. What came from the client is quoted and cut
// by the format.
func (p *problem) because(format string, args ...any) *problem {
	q := *p
	q.Detail = fmt.Sprintf(format, args...)
	return &q
}

// of returns the problem with what an error says beyond the title, which many begin with.
func (p *problem) of(err error) *problem {
	text := err.Error()
	title, said := strings.TrimPrefix(p.Title, "The "), strings.TrimPrefix(text, "the ")
	if n := len(title); len(said) >= n && strings.EqualFold(said[:n], title) {
		if rest, more := strings.CutPrefix(said[n:], ": "); more || rest == "" {
			text = rest
		}
	}
	q := *p
	q.Detail = text
	return &q
}

// The set is closed; openapi.json lists it.
var (
	problemRequest       = newProblem(400, "bad-request", "Invalid request")
	problemTopic         = newProblem(400, "invalid-topic", "Invalid topic name")
	problemKey           = newProblem(400, "invalid-key", "Idempotency key too long")
	problemToken         = newProblem(401, "unauthorized", "Token required", "WWW-Authenticate", "Bearer")
	problemOrigin        = newProblem(403, "foreign-origin", "Cross-origin request refused")
	problemPath          = newProblem(404, "not-found", "Not found")
	problemNoTopic       = newProblem(404, "no-such-topic", "Topic not found")
	problemNoConnection  = newProblem(404, "no-such-connection", "Connection not found")
	problemNoEndpoint    = newProblem(404, "no-such-endpoint", "Endpoint not found")
	problemMethod        = newProblem(405, "method-not-allowed", "Method not allowed")
	problemTimeout       = newProblem(408, "request-timeout", "Request timeout")
	problemNoDrain       = newProblem(409, "no-such-drain", "Server is not draining")
	problemDrain         = newProblem(409, "drain-under-way", "Drain can no longer be cancelled")
	problemTooLarge      = newProblem(413, "too-large", "Message too large")
	problemMediaType     = newProblem(415, "unsupported-media-type", "Unsupported media type")
	problemHost          = newProblem(421, "misdirected", "Misdirected request")
	problemNotJSON       = newProblem(422, "not-json", "Message is not valid JSON")
	problemNotText       = newProblem(422, "not-text", "Message is not valid UTF-8")
	problemNotOffered    = newProblem(501, "not-offered", "Not supported by the application")
	problemInternal      = newProblem(500, "internal-error", "Internal error")
	problemNoCluster     = newProblem(503, "no-cluster", "Cluster cannot be reached", "Retry-After", "2")
	problemStoreFull     = newProblem(503, "store-full", "Cluster store is full", "Retry-After", "10")
	problemUncertain     = newProblem(504, "uncertain", "Message not acknowledged by the cluster")
	problemOverloaded    = newProblem(503, "overloaded", "Server overloaded", "Retry-After", "1")
	problemNotReady      = newProblem(503, "not-ready", "Server is not ready")
	problemNotLive       = newProblem(503, "not-live", "Server is not live")
	problemTooManyTopics = newProblem(503, "too-many-topics", "Topic limit reached (limits.max_topics)", "Retry-After", "60")
)

// problems are all of them.
var problems = map[string]*problem{}

func newProblem(status int, name, title string, header ...string) *problem {
	p := &problem{Type: "/problems/" + name, Title: title, Status: status}
	for i := 0; i < len(header); i += 2 {
		p.header = append(p.header, [2]string{header[i], header[i+1]})
	}
	problems[p.Type] = p
	return p
}

// problemOf says in the interface's words what went wrong, or returns nil for what must not happen.
func problemOf(err error) *problem {
	var ready *problem
	var name *topic.NameError
	var request *envelope.RequestError
	var size *http.MaxBytesError
	switch {
	case errors.As(err, &ready):
		return ready
	case errors.As(err, &name):
		return problemTopic.of(err)
	case errors.As(err, &request):
		return problemRequest.of(err)
	case errors.As(err, &size):
		return problemTooLarge.of(topic.ErrTooLarge)
	case errors.Is(err, topic.ErrTooLarge):
		return problemTooLarge.of(err)
	case errors.Is(err, topic.ErrKey):
		return problemKey.of(err)
	case errors.Is(err, topic.ErrNotJSON):
		return problemNotJSON.of(err)
	case errors.Is(err, topic.ErrNotText):
		return problemNotText.of(err)
	case errors.Is(err, topic.ErrTooMany):
		return problemTooManyTopics.of(err)
	case errors.Is(err, topic.ErrOverloaded):
		return problemOverloaded.of(err)
	case errors.Is(err, topic.ErrStoreFull):
		return problemStoreFull.of(err)
	case errors.Is(err, topic.ErrNoCluster):
		return problemNoCluster.of(err)
	case errors.Is(err, topic.ErrUncertain):
		return problemUncertain.of(fmt.Errorf("%w; with an Idempotency-Key, a message for a persistent topic can be retried", err))
	case errors.Is(err, ErrNoTopic):
		return problemNoTopic.of(err)
	case errors.Is(err, ErrNoConnection):
		return problemNoConnection.of(err)
	case errors.Is(err, ErrNoEndpoint):
		return problemNoEndpoint.of(err)
	case errors.Is(err, ErrNotDraining):
		return problemNoDrain.of(err)
	case errors.Is(err, ErrDrainUnderWay):
		return problemDrain.of(err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return problemTimeout.because("the body did not arrive in time")
	}
	return nil
}

// bad returns the problem of a request that makes no sense.
func bad(format string, args ...any) error { return problemRequest.because(format, args...) }

// Misdirected answers a request for a host that is not this machine.
func Misdirected(w http.ResponseWriter, host string) {
	writeProblem(w, problemHost.because("without a token the Host must be localhost or a loopback address, not %.100q", host))
}

func writeProblem(w http.ResponseWriter, p *problem) {
	h := w.Header()
	for _, line := range p.header {
		h.Set(line[0], line[1])
	}
	body := append(envelope.AppendJSON(nil, p), '\n')
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(body)
}
