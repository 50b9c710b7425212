//! Values that ranks of a process share: each is made once, and freed by its last user.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Shared values by key. The map does not keep them alive.
///
/// Ranks are threads that request equal values in any order. The first one makes the value while the others wait for
/// it. If it fails, the next one tries, so that no rank waits for a rank that has ended. The making of a value must not
/// wait for another rank.
pub struct Shared<K, V> {
    slots: Mutex<HashMap<K, Slot<V>>>,
}

/// A value, as long as it is in use. The thread that makes it holds the lock.
type Slot<V> = Arc<Mutex<Weak<V>>>;

impl<K: Eq + Hash, V> Shared<K, V> {
    /// Returns the value of `key`. Calls `make` unless the value is in use already.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get<E>(&self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        let slot = self.slot(key);
        let mut known = lock(&slot);
        if let Some(value) = known.upgrade() {
            return Ok(value);
        }
        let value = Arc::new(make()?);
        *known = Arc::downgrade(&value);
        Ok(value)
    }

    fn slot(&self, key: K) -> Slot<V> {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get(&key) {
            return slot.clone();
        }
        // No thread is filling a slot that only this map holds, so its lock is free.
        slots.retain(|_, slot| Arc::strong_count(slot) > 1 || lock(slot).strong_count() > 0);
        slots.entry(key).or_default().clone()
    }
}

/// Locks `mutex`. Poisoning is ignored: a rank that unwinds while it holds a lock leaves the value consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl<K, V> fmt::Debug for Shared<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn ranks_that_ask_together_get_one_value() {
        let (shared, made, start) = (Shared::default(), AtomicUsize::new(0), Barrier::new(8));
        let rank = |_| {
            start.wait();
            let value = shared.get("key", || {
                made.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>(vec![0; 1000])
            });
            let Ok(value) = value;
            // Keeps the value in use until all have it.
            start.wait();
            value
        };
        let values: Vec<_> = thread::scope(|scope| {
            let ranks: Vec<_> = (0..8).map(|index| scope.spawn(move || rank(index))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert_eq!(made.load(Ordering::Relaxed), 1);
        assert!(values.iter().all(|value| Arc::ptr_eq(value, &values[0])));
        assert_eq!(Arc::strong_count(&values[0]), 8, "only its users hold it");
    }

    #[test]
    fn nothing_is_kept_that_nobody_uses() {
        let shared = Shared::default();
        let get = |key, value| shared.get(key, || Ok::<_, Infallible>(value)).unwrap();
        assert_eq!(*get(1, 10), 10);
        assert_eq!(*get(1, 20), 20, "the first value went with its user");
        let used = get(2, 30);
        for key in 3..100 {
            get(key, 0);
        }
        assert_eq!(*get(2, 40), *used);
        assert!(lock(&shared.slots).len() <= 2, "slots without a value are cleared away");
    }

    #[test]
    fn a_rank_that_fails_leaves_the_others_to_try() {
        let shared = Shared::<_, i32>::default();
        assert_eq!(shared.get("key", || Err("it failed")), Err("it failed"));
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            shared.get("key", || -> Result<_, Infallible> { resume_unwind(Box::new("it unwound")) })
        }));
        assert!(unwound.is_err());
        assert_eq!(shared.get("key", || Ok::<_, Infallible>(5)), Ok(Arc::new(5)));
    }
}
