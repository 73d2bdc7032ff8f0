//! A service of the user's, called by POST with `{"migration": .., "step": "hold" | "flip" | "release"}`.

use std::time::Duration;

use super::{Router, RouterError, RouterFuture};
use crate::model::MigrationName;

pub struct Http {
    migration: MigrationName,
    url: String,
    timeout: Duration,
    agent: ureq::Agent,
}

impl Http {
    /// A step is done when the service answers 2xx within `timeout`.
    pub fn new(migration: MigrationName, url: String, timeout: Duration) -> Self {
        let agent = ureq::Agent::config_builder().timeout_global(Some(timeout)).build().new_agent();
        Self { migration, url, timeout, agent }
    }

    async fn call(&self, step: &'static str) -> Result<(), RouterError> {
        let (agent, url) = (self.agent.clone(), self.url.clone());
        let body = serde_json::json!({ "migration": self.migration.as_str(), "step": step });
        let called = tokio::task::spawn_blocking(move || agent.post(&url).send_json(body).map(drop));
        // The agent has the same limit; this one holds if it is stuck before it gets that far.
        let answered = tokio::time::timeout(self.timeout * 2, called).await;
        let answered = answered.map_err(|_| RouterError::NoAnswer(self.timeout))?;
        let what = match answered {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(RouterError::Call { url: shown(&self.url).to_owned(), what })
    }
}

impl Router for Http {
    fn name(&self) -> String {
        format!("http {}", shown(&self.url))
    }

    /// There is no call that a user's service must not act upon: it is first called to hold.
    fn check(&self) -> RouterFuture<'_> {
        Box::pin(async { Ok(()) })
    }

    fn hold(&self) -> RouterFuture<'_> {
        Box::pin(self.call("hold"))
    }

    fn flip(&self) -> RouterFuture<'_> {
        Box::pin(self.call("flip"))
    }

    fn release(&self) -> RouterFuture<'_> {
        Box::pin(self.call("release"))
    }
}

/// The host and path: what stands before `@` or after `?` may be a secret.
fn shown(url: &str) -> &str {
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    let bare = bare.split_once("://").map_or(bare, |(_, rest)| rest);
    bare.rsplit_once('@').map_or(bare, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_url_holds_no_secret() {
        assert_eq!(shown("https://user:secret@lb.example/hook?token=secret"), "lb.example/hook");
        assert_eq!(shown("http://127.0.0.1:8080/flip"), "127.0.0.1:8080/flip");
    }
}
