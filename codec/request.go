package codec

import "iter"

// Request is an HTTP request head. Its fields and what its methods return are views of the bytes that
// were given to Parse, good for as long as those are left unchanged.
type Request struct {
	Method []byte // such as "GET"
	Target []byte // as it stands in the request line
	Path   []byte // of Target, escapes and all; "/" when an absolute target has none
	Query  []byte // of Target, without the "?"; nil when there is none
	Host   []byte // host and, if it was given, port

	// HTTP10 is set when the request is well-formed HTTP/1.0, for which Parse has returned 505: a
	// handshake it cannot be, but a server of plain HTTP may take it. Host may then be nil.
	HTTP10 bool

	fields    []byte // the header section without its blank line, known to be valid
	authority []byte // of an absolute target; nil for an origin target
}

// Parse reads a whole head, blank line included, as [HeadLen] delimits it. It refuses, with a
// *[Rejection], what is not strictly HTTP/1.1 (RFC 9112): what one reader takes in this way and the
// next in that is how requests are smuggled past a proxy. It does not ask whether the request makes
// sense; see [Request.CheckUpgrade]. On success it allocates nothing.
//
// A well-formed request of another version gets 505, everything else 400. Empty lines before the
// request line are refused: [EmptyLines] finds those to skip.
func (r *Request) Parse(head []byte) error {
	*r = Request{}
	if err := r.parse(head); err != nil {
		r.HTTP10 = false
		return err
	}
	if r.HTTP10 {
		return errVersion
	}
	return nil
}

func (r *Request) parse(head []byte) *Rejection {
	line, section, ok := cutLine(head)
	if !ok {
		return errLineEnd
	}
	if err := r.parseLine(line); err != nil {
		return err
	}
	if err := r.parseFields(section); err != nil {
		return err
	}
	if r.authority != nil {
		r.Host = r.authority // it wins over the header (RFC 9112, section 3.2.2)
	}
	r.fields = section[:len(section)-len("\r\n")]
	return nil
}

// Header returns the first value of the header, without the white space around it; nil when it is
// absent. The name is compared without regard to case.
func (r *Request) Header(name string) []byte {
	for n, value := range r.Headers() {
		if sameName(n, name) {
			return value
		}
	}
	return nil
}

// Headers yields every header's name, as it was sent, and value, in the order in which they came.
func (r *Request) Headers() iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		for section := r.fields; len(section) > 0; {
			line, rest, _ := cutLine(section)
			name, value, _ := cutField(line)
			if !yield(name, value) {
				return
			}
			section = rest
		}
	}
}

// sameName compares header names, both of any case.
func sameName(a []byte, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if x != y && (x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z') {
			return false
		}
	}
	return true
}
