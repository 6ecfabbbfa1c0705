package server

// resync looks at all kept topics again.
func (cl *cluster) resync(why string) {
	cl.stats.resyncs.Add(1)
	cl.srv.log.Info("looking at all topics again that the cluster keeps", "why", why)
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if !cl.resyncing {
		cl.resyncing = true
		go cl.resyncAll()
	}
}

func (cl *cluster) resyncAll() {
	for {
		number := cl.stats.resyncs.Load()
		for i := range cl.hub.parts {
			for t := range cl.hub.parts[i].all() {
				cl.resyncOne(t)
			}
		}
		cl.mu.Lock()
		cl.resyncing = cl.stats.resyncs.Load() != number
		again := cl.resyncing
		cl.mu.Unlock()
		if !again {
			return
		}
	}
}

// resyncOne begins the load of one topic when few others are under way, unless one has begun meanwhile.
func (cl *cluster) resyncOne(t *topicState) {
	if t.link.kept == nil { // which does not change
		return
	}
	cl.paced <- struct{}{}
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.link.kept
	if t.forgotten || !k.loaded && t.link.feeder == nil && !k.loading || !cl.outdated(k) {
		<-cl.paced
		return
	}
	k.resting, k.tries = false, 0
	cl.enlist(&t.source, &waiter{load: k.loads + 1, done: func(error) { <-cl.paced }})
	cl.load(t)
}
