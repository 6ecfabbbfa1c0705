package demo

import (
	"errors"
	"time"

	"carillon/server"
)

// announcements publish joins and leaves. Each goes to all guests, so clients that come and go quickly would have the
// server write to all others as often. So at most announceRate a second are published; the others wait, and a join and
// a leave of the same name that both wait cancel each other. Guarded by room.mu.
type announcements struct {
	rate          bucket
	joins, leaves map[string]event // by name
	people        nameList         // those whose joins were published, and no leaves
}

func newAnnouncements() announcements {
	return announcements{joins: map[string]event{}, leaves: map[string]event{}}
}

// add adds a join or leave, or cancels the one that it undoes.
func (a *announcements) add(e event) {
	same, other := a.joins, a.leaves
	if e.Kind == "leave" {
		same, other = other, same
	}
	if _, undone := other[e.Name]; undone {
		delete(other, e.Name)
		return
	}
	same[e.Name] = e
}

// flush publishes what the rate allows, and keeps the rest, and what cannot be published, for later. That the server is
// overloaded is no error. Leaves come first, so that people are never more than maxPeople, which bounds what can wait.
func (a *announcements) flush(now time.Time, publish func(event) error) error {
	for _, events := range []map[string]event{a.leaves, a.joins} {
		for name, e := range events {
			if !a.rate.take(now, announceRate, announceBurst) {
				return nil
			}
			if err := publish(e); errors.Is(err, server.ErrOverloaded) {
				return nil
			} else if err != nil {
				return err
			}
			delete(events, name)
			if e.Kind == "join" {
				a.people = a.people.with(name)
			} else {
				a.people = a.people.without(name)
			}
		}
	}
	return nil
}
