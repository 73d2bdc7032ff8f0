//! An error and its causes on one line.

use std::error::Error;

/// `outermost: cause: its cause`. An error's own text says only its own step, so the chain is printed where the error is
/// handled and nowhere else.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let step = cause.to_string();
        // Some libraries repeat their cause in their own text; saying it twice helps nobody.
        if !text.ends_with(&step) {
            text.push_str(": ");
            text.push_str(&step);
        }
        next = cause.source();
    }
    text
}
