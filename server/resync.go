package server

// resync looks at all persistent topics again.
func (f *follower) resync(why string) {
	f.stats.resyncs.Add(1)
	f.hub.engine.Log.Info("reloading all persistent topics", "why", why)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.resyncing {
		f.resyncing = true
		go f.resyncAll()
	}
}

func (f *follower) resyncAll() {
	for {
		number := f.stats.resyncs.Load()
		for i := range f.hub.parts {
			for t := range f.hub.parts[i].all() {
				f.resyncOne(t)
			}
		}
		f.mu.Lock()
		f.resyncing = f.stats.resyncs.Load() != number
		again := f.resyncing
		f.mu.Unlock()
		if !again {
			return
		}
	}
}

// resyncOne begins the load of one topic when few others are under way, unless one has begun meanwhile.
func (f *follower) resyncOne(t *topicState) {
	if t.link.replica == nil { // which does not change
		return
	}
	f.paced <- struct{}{}
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.link.replica
	if t.forgotten || !k.loaded && t.link.coveringPattern == nil && !k.loading || !f.isStale(k) {
		<-f.paced
		return
	}
	k.resting, k.tries = false, 0
	f.enlist(&t.source, &waiter{load: k.loads + 1, done: func(error) { <-f.paced }}, waitTime)
	f.load(t)
}
