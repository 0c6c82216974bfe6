package dial

import (
	"testing"
	"testing/synctest"
	"time"
)

// What nobody needs is cut soon. If it is tried again and again, others on the connection have a second for a response.
func TestAbortLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		var cuts []time.Duration
		began := time.Now()
		done := AbortLate(stop, func() {
			cuts = append(cuts, time.Since(began))
			began = time.Now()
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(cuts) > 0 {
			t.Error("cut before the stop")
		}
		began = time.Now()
		close(stop)
		time.Sleep(5*time.Second + time.Millisecond)
		done()
		if len(cuts) != 6 || cuts[0] != abortPatience || cuts[1] != 2*abortPatience || cuts[5] != time.Second {
			t.Errorf("cut after %v", cuts)
		}
		time.Sleep(time.Minute)
		if len(cuts) != 6 {
			t.Error("cut after the end")
		}
	})
}
