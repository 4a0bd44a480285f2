//! The wish to end, which is looked at where an end does no harm.

use tokio::sync::watch;

/// Held by who decides; the wish of all its [`Stop`]s.
pub struct Stopper(watch::Sender<bool>);

/// Handed to who is to end.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stopper {
    pub fn new() -> (Stopper, Stop) {
        let (sender, receiver) = watch::channel(false);
        (Stopper(sender), Stop(receiver))
    }

    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Nobody stops this.
    pub fn never() -> Stop {
        Stopper::new().1
    }

    pub fn is_wanted(&self) -> bool {
        *self.0.borrow()
    }

    /// Until it is wanted; for ever if nobody can want it any more.
    pub async fn wanted(&mut self) {
        if self.0.wait_for(|wanted| *wanted).await.is_err() {
            std::future::pending().await
        }
    }
}
