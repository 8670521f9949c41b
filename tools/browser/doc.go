// Package browser tests tokend in a real browser: its API page, and what pages of other origins may do. It drives the built
// program, and is in this module so that the service's own does not require what drives the browser.
package browser
