package main

// browserFlags say what the REST listener has for browsers.
type browserFlags struct {
	Docs        bool
	CORSOrigins []string
}

// declare has the page as it is by default.
func (f *browserFlags) declare(flags flags, docs bool) {
	flags = flags.about(aboutBrowsers)
	flags.booleanAs(&f.Docs, docs, "docs", "Serve /docs, a page to read the API and try it, and /openapi.json with the REST API. The page asks no other host for anything.")
	flags.list(&f.CORSOrigins, "cors-origin", "ORIGIN", "Origins, such as https://app.example.com, whose pages may call the REST API with an authorization header (CORS). Repeat it, or separate them by commas. There are no wildcards.")
}

func (f *browserFlags) open(s *setup) {
	s.Docs, s.CORSOrigins = f.Docs, f.CORSOrigins
}
