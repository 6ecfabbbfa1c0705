package option

import (
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"time"
)

// Checker collects the problems of a set of options and fills in defaults on the way. The zero value is ready to use.
type Checker struct {
	Prefix string // of the keys

	problems []error
}

// Add adds a problem.
func (c *Checker) Add(key, format string, args ...any) {
	c.AddError(&Error{Key: c.Prefix + key, Problem: fmt.Sprintf(format, args...)})
}

// AddError adds an error that has its key already.
func (c *Checker) AddError(err error) { c.problems = append(c.problems, err) }

// Len returns the number of problems.
func (c *Checker) Len() int { return len(c.problems) }

// Err joins the problems, and is nil if there are none.
func (c *Checker) Err() error { return errors.Join(c.problems...) }

// Longest is the upper bound of the time-outs that [Checker.Duration] checks: event loops keep times as milliseconds in
// 32 bits.
const Longest = 7 * 24 * time.Hour

// Duration checks a time between 1 ms and [Longest]. Zero becomes the default, and a negative one is off, if that is
// allowed, and becomes -1.
func (c *Checker) Duration(key string, d *time.Duration, def time.Duration, canBeOff bool) {
	c.DurationWithin(key, d, def, time.Millisecond, Longest, canBeOff)
}

// DurationWithin is Duration with other bounds.
func (c *Checker) DurationWithin(key string, d *time.Duration, def, least, most time.Duration, canBeOff bool) {
	switch {
	case *d == 0:
		*d = def
	case *d < 0:
		*d = -1
		if !canBeOff {
			c.Add(key, "cannot be turned off: expected a duration such as %v", def)
		}
	case *d < least || *d > most:
		c.Add(key, "%v is out of range: expected %v to %v", *d, least, most)
	}
}

// Jitter checks the part of something by which it varies, 0 to 1. Zero becomes 0.2, and a negative one -1.
func (c *Checker) Jitter(key string, part *float64, of string) {
	switch {
	case *part == 0:
		*part = 0.2
	case *part < 0:
		*part = -1
	case *part > 1 || math.IsNaN(*part):
		c.Add(key, "%v is out of range: expected a fraction of the %s, 0 to 1", *part, of)
	}
}

// Size checks a size. Zero becomes the default, and a negative one is off, if that is allowed, and becomes -1.
func (c *Checker) Size(key string, s *Size, def Size, canBeOff bool) {
	switch {
	case *s == 0:
		*s = def
	case *s < 0:
		*s = -1
		if !canBeOff {
			c.Add(key, "cannot be turned off: expected a size such as %v", def)
		}
	}
}

// Rate checks a number up to most. Zero is off, too.
func (c *Checker) Rate(key string, n *int, most int) {
	if *n <= 0 {
		*n = -1
	}
	if *n > most {
		c.Add(key, "%d is out of range: expected 1 to %d, or off", *n, most)
	}
}

// FileMode checks the permissions of a file. Zero becomes the default.
func (c *Checker) FileMode(key string, mode *FileMode, def FileMode) {
	if *mode == 0 {
		*mode = def
	}
	if *mode > 0o777 {
		c.Add(key, "%v is out of range: expected permissions up to 0777, such as %v", *mode, def)
	}
}

// Address reports whether the text of an address to listen on is valid. such has examples of valid ones.
func (c *Checker) Address(key, address, such string) bool {
	if _, port, err := net.SplitHostPort(address); err != nil {
		c.Add(key, "%q is not an address: expected host:port, such as %s", address, such)
		return false
	} else if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		c.Add(key, "%q has no port from 0 to 65535", address)
		return false
	}
	return true
}
