package hub

// resync looks at all persistent topics again.
func (f *Follower) resync(why string) {
	f.stats.Resyncs.Add(1)
	f.hub.engine.Log.Info("reloading all persistent topics", "why", why)
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if !f.Resyncing {
		f.Resyncing = true
		go f.resyncAll()
	}
}

func (f *Follower) resyncAll() {
	for {
		number := f.stats.Resyncs.Load()
		for i := range f.hub.Parts {
			for t := range f.hub.Parts[i].All() {
				f.resyncOne(t)
			}
		}
		f.Mu.Lock()
		f.Resyncing = f.stats.Resyncs.Load() != number
		again := f.Resyncing
		f.Mu.Unlock()
		if !again {
			return
		}
	}
}

// resyncOne begins the load of one topic when few others are under way, unless one has begun meanwhile.
func (f *Follower) resyncOne(t *topicState) {
	if t.Link.replica == nil { // which does not change
		return
	}
	f.paced <- struct{}{}
	t.Mu.Lock()
	defer t.Mu.Unlock()
	k := t.Link.replica
	if t.Forgotten || !k.loaded && t.Link.coveringPattern == nil && !k.loading || !f.isStale(k) {
		<-f.paced
		return
	}
	k.resting, k.tries = false, 0
	f.enlist(&t.Source, &waiter{load: k.loads + 1, done: func(error) { <-f.paced }}, waitTime)
	f.load(t)
}
