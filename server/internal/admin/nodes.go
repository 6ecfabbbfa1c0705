package admin

import (
	"cmp"
	"net/http"
	"slices"

	"carillon/server/topic"
)

// nodes lists the servers of the cluster, which may be this one alone.
func (a *api) nodes(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	page := struct {
		Node  string           `json:"node"` // this one
		Nodes []topic.NodeInfo `json:"nodes"`
	}{Nodes: a.backend.Nodes()}
	if len(page.Nodes) > 0 {
		page.Node = page.Nodes[0].ID
	}
	slices.SortFunc(page.Nodes, func(a, b topic.NodeInfo) int { return cmp.Compare(a.ID, b.ID) })
	return reply(w, page)
}
