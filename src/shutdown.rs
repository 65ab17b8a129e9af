//! The one signal that asks running parts to stop.

use tokio::sync::watch;

/// Asks every holder of the matching [`Shutdown`] to stop, once. Dropping it asks too, so that
/// nothing outlives the owner that could have stopped it.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Trigger {
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// The receiving side; cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    pub fn new() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Self(receiver))
    }

    pub fn is_asked(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns once stopping has been asked for; at once if it already was. Cancel safe.
    pub async fn asked(&mut self) {
        // An error says that the trigger is gone, which is the same demand.
        self.0.wait_for(|asked| *asked).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trigger_reaches_every_clone_and_a_lost_trigger_counts_as_one() {
        let (trigger, mut shutdown) = Shutdown::new();
        let mut other = shutdown.clone();
        assert!(!shutdown.is_asked());
        trigger.stop();
        shutdown.asked().await;
        other.asked().await;
        assert!(other.is_asked());

        let (trigger, mut shutdown) = Shutdown::new();
        drop(trigger);
        assert!(shutdown.is_asked());
        shutdown.asked().await;
    }
}
