//! What is to be done about an error: decided where it arises, acted on only in `pipeline`.

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Try again with back-off: the cause is expected to go away by itself (a restart, a dropped connection).
    Retry,
    /// Stop that part and wait for the operator; `hint` is what to do, with the command to type.
    Halt { hint: String },
}
