package server

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"carillon/server/internal/envelope"
)

// problem is an error of the HTTP interface (RFC 9457). It is an error too, so that it can be returned.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`

	Reasons []condition `json:"reasons,omitempty"` // of a server that is not ready or not alive

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
	problemRequest       = newProblem(400, "bad-request", "The request makes no sense")
	problemTopic         = newProblem(400, "invalid-topic", "The name is not that of a topic")
	problemKey           = newProblem(400, "invalid-key", "The idempotency key is too long")
	problemToken         = newProblem(401, "unauthorized", "A token is needed", "WWW-Authenticate", "Bearer")
	problemOrigin        = newProblem(403, "foreign-origin", "A browser sent this for a page from elsewhere")
	problemPath          = newProblem(404, "not-found", "There is nothing at this path")
	problemNoTopic       = newProblem(404, "no-such-topic", "There is no such topic")
	problemNoConnection  = newProblem(404, "no-such-connection", "There is no such connection")
	problemNoEndpoint    = newProblem(404, "no-such-endpoint", "There is no such endpoint")
	problemMethod        = newProblem(405, "method-not-allowed", "The path does not have this method")
	problemTimeout       = newProblem(408, "request-timeout", "The request took too long")
	problemNoDrain       = newProblem(409, "no-such-drain", "The server does not drain")
	problemDrain         = newProblem(409, "drain-under-way", "It is too late to call the drain off")
	problemTooLarge      = newProblem(413, "too-large", "The message is too large")
	problemMediaType     = newProblem(415, "unsupported-media-type", "The body is of a kind that is not taken here")
	problemHost          = newProblem(421, "misdirected", "The request was meant for another host")
	problemNotJSON       = newProblem(422, "not-json", "The message is not JSON")
	problemNotText       = newProblem(422, "not-text", "The message is not UTF-8")
	problemNotOffered    = newProblem(501, "not-offered", "The application does not offer this")
	problemInternal      = newProblem(500, "internal-error", "Something is wrong with the server")
	problemNoCluster     = newProblem(503, "no-cluster", "The cluster cannot be reached", "Retry-After", "2")
	problemStoreFull     = newProblem(503, "store-full", "The cluster's store is full", "Retry-After", "10")
	problemUncertain     = newProblem(504, "uncertain", "It is not known whether the cluster has the message")
	problemOverloaded    = newProblem(503, "overloaded", "The server has too much to do", "Retry-After", "1")
	problemNotReady      = newProblem(503, "not-ready", "The server should get no new connections now")
	problemNotLive       = newProblem(503, "not-live", "A part of the server has stopped")
	problemTooManyTopics = newProblem(503, "too-many-topics", "The server has as many topics as it may have", "Retry-After", "60")
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
	var topic *TopicError
	var request *badRequest
	var size *http.MaxBytesError
	switch {
	case errors.As(err, &ready):
		return ready
	case errors.As(err, &topic):
		return problemTopic.of(err)
	case errors.As(err, &request):
		return problemRequest.of(err)
	case errors.As(err, &size):
		return problemTooLarge.of(ErrTooLarge)
	case errors.Is(err, ErrTooLarge):
		return problemTooLarge.of(err)
	case errors.Is(err, ErrKey):
		return problemKey.of(err)
	case errors.Is(err, ErrNotJSON):
		return problemNotJSON.of(err)
	case errors.Is(err, ErrNotText):
		return problemNotText.of(err)
	case errors.Is(err, ErrTooManyTopics):
		return problemTooManyTopics.of(err)
	case errors.Is(err, ErrOverloaded):
		return problemOverloaded.of(err)
	case errors.Is(err, ErrStoreFull):
		return problemStoreFull.of(err)
	case errors.Is(err, ErrNoCluster):
		return problemNoCluster.of(err)
	case errors.Is(err, ErrUncertain):
		return problemUncertain.of(fmt.Errorf("%w: one with an Idempotency-Key, for a topic with history, may be published again", err))
	case errors.Is(err, ErrNotDraining):
		return problemNoDrain.of(err)
	case errors.Is(err, ErrDrainUnderWay):
		return problemDrain.of(err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return problemTimeout.because("the body did not arrive in time")
	}
	return nil
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
