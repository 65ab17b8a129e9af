//! Which messages a consumer wants: subscription expressions by tag.

use std::collections::HashSet;

use rmq_wire::record;

/// `ExpressionType.TAG`; also what no type at all means.
const TAG: &str = "TAG";

/// Whether expressions of this type are by tag (`ExpressionType.isTagType`).
pub(super) fn is_tag_type(expression_type: Option<&str>) -> bool {
    expression_type.is_none_or(|kind| kind.is_empty() || kind == TAG)
}

/// Tags compared by their hash, as they stand in a consume queue. A consumer compares the strings
/// again, for two tags may share a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TagFilter {
    All,
    Codes(HashSet<i64>),
}

impl TagFilter {
    /// Reads `*` or `a || b` (`FilterAPI.buildSubscriptionData`).
    pub(super) fn parse(expression: Option<&str>) -> Self {
        match expression {
            None | Some("" | "*") => Self::All,
            Some(expression) => Self::Codes(
                expression
                    .split("||")
                    .map(str::trim)
                    .filter(|tag| !tag.is_empty())
                    .map(record::tags_code)
                    .collect(),
            ),
        }
    }

    pub(super) fn matches(&self, tags_code: i64) -> bool {
        match self {
            Self::All => true,
            Self::Codes(codes) => codes.contains(&tags_code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_names_its_tags() {
        let filter = TagFilter::parse(Some(" TagA ||TagB|| "));
        assert!(filter.matches(record::tags_code("TagA")));
        assert!(filter.matches(record::tags_code("TagB")));
        assert!(!filter.matches(record::tags_code("TagC")));
        assert!(!filter.matches(0), "a message without tags");
        for everything in [None, Some(""), Some("*")] {
            assert_eq!(TagFilter::parse(everything), TagFilter::All);
        }
        assert!(is_tag_type(None) && is_tag_type(Some("TAG")) && !is_tag_type(Some("SQL92")));
    }
}
