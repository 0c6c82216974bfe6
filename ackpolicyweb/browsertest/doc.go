// Package browsertest opens the page of ackpolicyweb in a headless Chromium, beside Subscribers that
// run into trouble on a broker. It has tests only, and is a separate module for the sake of what they need.
package browsertest
