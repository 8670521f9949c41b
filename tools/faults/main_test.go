package main

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	rows := parseTable("| # | fault | what |\n|---|---|---|\n| 7 | 401 | UN |\n| 55 ◆ | Redis is down | OK |\n| 8 | later | OK |\n")
	if len(rows) != 3 || rows[1] != (row{55, "Redis is down"}) {
		t.Fatalf("got %v", rows)
	}
	results, err := read(strings.NewReader(`{"Action":"run","Test":"TestFault07Unauthorized"}
{"Action":"pass","Test":"TestFault07Unauthorized/gRPC"}
{"Action":"skip","Test":"TestFault07Unauthorized/REST"}
{"Action":"pass","Test":"TestFault07Unauthorized"}
{"Action":"skip","Test":"TestFault55RedisDown"}
{"Action":"pass","Test":"TestOther"}
`))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := printTable(&out, rows, results); err == nil || err.Error() != "2 rows do not pass" {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"7   pass     REST+gRPC  401", "55  FAIL", "skip TestFault55RedisDown", "8   MISSING", "1 of 3 rows pass"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
}
