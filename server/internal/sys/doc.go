// Package sys makes the system calls of the event loops that Go and gnet do not offer.
package sys
