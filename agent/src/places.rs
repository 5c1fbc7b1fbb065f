//! Places for clients: so many at a time, and whoever comes gets one.

use std::collections::VecDeque;

use tokio::task::AbortHandle;

/// Bounds how many clients are served at a time. When all places are taken the client that came first is
/// let go: one that asks something has its answer within milliseconds, so that this one only holds its
/// place. Were the newcomer kept waiting or turned away instead, a few clients that say nothing would
/// keep out the kubelet, Prometheus and the CNI plugin.
pub struct Places {
    most: usize,
    taken: VecDeque<AbortHandle>,
}

impl Places {
    /// Places for `most` clients, at least one.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), taken: VecDeque::new() }
    }

    /// Serves one more client, in a task of its own. Must be called within a tokio runtime.
    pub fn serve(&mut self, client: impl Future<Output = ()> + Send + 'static) {
        self.taken.retain(|client| !client.is_finished());
        while self.taken.len() >= self.most
            && let Some(first) = self.taken.pop_front()
        {
            first.abort();
        }
        self.taken.push_back(tokio::spawn(client).abort_handle());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_first_makes_room_and_who_has_ended_takes_none() {
        let alive = Arc::new(());
        let mut places = Places::new(2);
        places.serve(async {});
        tokio::task::yield_now().await;
        for _ in 0..2 {
            let held = alive.clone();
            places.serve(async move {
                std::future::pending::<()>().await;
                drop(held);
            });
        }
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 3, "both are there");
        places.serve(std::future::pending());
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&alive), 2, "the first of them went");
    }
}
