//! What someone who mistyped a name may have meant.

/// The name nearest to `text`, if it is near enough that someone may have meant it.
pub(super) fn nearest<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Beyond a third of the letters a suggestion is noise.
    let limit = (text.chars().count() / 3).clamp(1, 4);
    names
        .into_iter()
        .filter(|name| name.len().abs_diff(text.len()) <= 4 * limit)
        .map(|name| (distance(&text.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Letters to insert, delete, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let same = a[i - 1] == b[j - 1];
            row[j] = (last[j] + 1)
                .min(row[j - 1] + 1)
                .min(last[j - 1] + usize::from(!same));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_single_edits_and_swaps() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("listenPort", "listenPort"), 0);
        assert_eq!(distance("lisetnPort", "listenPort"), 1);
        assert_eq!(distance("mapedFileSize", "mappedFileSize"), 1);
    }

    #[test]
    fn nearest_prefers_the_smallest_distance_and_refuses_far_names() {
        let names = ["brokerIP1", "brokerIP2", "brokerName"];
        assert_eq!(nearest("brokerIp2", names), Some("brokerIP2"));
        assert_eq!(nearest("brokrName", names), Some("brokerName"));
        assert_eq!(nearest("somethingElse", names), None);
    }
}
