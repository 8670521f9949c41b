package setup

import "testing"

func TestProxySetting(t *testing.T) {
	for value, valid := range map[string]bool{
		"":                                  true,
		"proxy.example:3128":                true,
		"http://user:planted@proxy.example": true,
		"socks5://proxy.example:1080":       true,
		"ftp://user:planted@proxy.example":  false,
		"user:planted@%zz":                  false,
		"http://":                           false,
	} {
		for _, name := range []string{"HTTPS_PROXY", "https_proxy"} {
			s := &Setup{opts: Options{Environ: []string{name + "=" + value}}}
			if s.checkProxy(); (len(s.Errors) == 0) != valid {
				t.Errorf("%s=%s: %v", name, value, s.Errors)
			}
		}
	}
}
