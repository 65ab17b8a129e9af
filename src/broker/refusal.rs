//! How a processor says no, and which code of the protocol stands for which failure.

use std::io;

use rmq_wire::code::response;
use rmq_wire::header::HeaderError;
use rmq_wire::json::JsonError;
use rmq_wire::name::NameError;

use super::replica::ProposeError;
use crate::remoting::Reply;

/// What a processor gives back.
pub(super) type Handled = Result<Reply, Refusal>;

/// An answer that is not the wished one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A response code and the remark that explains it.
    Code(i32, String),
    /// Nothing was done, for this node does not lead: whoever leads may do it.
    NotLeader,
    /// No answer at all. Some clients take any error for a fact (a consumer starts over when its
    /// offset cannot be read), and silence is the only thing that makes them ask again.
    Silence,
}

impl Refusal {
    pub(super) fn new(code: i32, remark: impl Into<String>) -> Self {
        Self::Code(code, remark.into())
    }

    /// The request itself is wrong or cannot be served: what Java answers to an exception.
    pub(super) fn system_error(remark: impl Into<String>) -> Self {
        Self::new(response::SYSTEM_ERROR, remark)
    }
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        let code = match error {
            ProposeError::NotLeader => return Self::NotLeader,
            // Clients retry both; 1 does not promise that nothing was stored.
            ProposeError::Frozen | ProposeError::Failed(_) => response::SERVICE_NOT_AVAILABLE,
            ProposeError::Unknown => response::SYSTEM_ERROR,
            ProposeError::TooLarge { .. } => response::MESSAGE_ILLEGAL,
        };
        Self::new(code, error.to_string())
    }
}

impl From<HeaderError> for Refusal {
    fn from(error: HeaderError) -> Self {
        Self::system_error(error.to_string())
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::system_error(error.to_string())
    }
}

impl From<JsonError> for Refusal {
    fn from(error: JsonError) -> Self {
        Self::system_error(error.to_string())
    }
}

/// A file of the store could not be read.
impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        tracing::error!(%error, "the store could not be read");
        Self::system_error(error.to_string())
    }
}
