package main

import (
	"time"

	"carillon/loadtest/internal/generator"
	"carillon/loadtest/internal/report"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// series is the time series of a run. It is thinned out when it grows too long.
type series struct {
	points []report.Point
	began  int64
	step   time.Duration

	lastAt        int64
	lastReceived  int64
	skip, skipped int
}

// maxPoints is the maximum length of a series.
const maxPoints = 1200

func (s *series) start(at int64, step time.Duration) {
	*s = series{began: at, lastAt: at, step: step, skip: 1}
}

// every is the interval between points.
func (s *series) every(command string) time.Duration {
	if s.step == 0 {
		return generator.ReportInterval(command)
	}
	return s.step
}

// point adds a point for now and returns it.
func (s *series) point(sum generator.Counters, recent *hdr.Histogram, server *monitor) report.Point {
	now := generator.Monotonic()
	p := report.Point{At: float64(now-s.began) / 1e9, Connections: sum.Open}
	if passed := now - s.lastAt; passed > 0 {
		p.Received = float64(sum.Received-s.lastReceived) / (float64(passed) / 1e9)
	}
	if recent.TotalCount() > 0 {
		p.P99 = float64(recent.ValueAtPercentile(99))
	}
	p.ServerCores, p.ServerRSS = server.sample()
	s.lastAt, s.lastReceived = now, sum.Received
	if s.skipped++; s.skipped >= s.skip {
		s.skipped = 0
		s.points = append(s.points, p)
	}
	if len(s.points) >= maxPoints {
		points := s.points[:0]
		for i := 0; i < len(s.points); i += 2 {
			points = append(points, s.points[i])
		}
		s.points, s.skip = points, 2*s.skip
	}
	return p
}
