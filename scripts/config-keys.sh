#!/usr/bin/env bash
# Writes src/config/keys.tsv: every configuration key that RocketMQ 4.9.8 and 5.5.0 know, as found in
# their published artefacts. Needs Maven and a JDK (11 or later); Maven keeps what it fetches.
#
# A key is what MixAll.properties2Object makes of a setter's name. Columns: key, type, the classes of
# each version that have it, the default of each version, and `important` where the print of -m has it;
# `-` where a version does not know the key.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
table="$here/../src/config/keys.tsv"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() { # version, artefacts...
  local version=$1 artefact
  shift
  mkdir -p "$work/$version"
  {
    echo '<project><modelVersion>4.0.0</modelVersion><groupId>k</groupId><artifactId>k</artifactId><version>1</version><dependencies>'
    for artefact in "$@"; do
      echo "<dependency><groupId>org.apache.rocketmq</groupId><artifactId>rocketmq-$artefact</artifactId><version>$version</version></dependency>"
    done
    echo '</dependencies></project>'
  } >"$work/$version/pom.xml"
  (cd "$work/$version" && mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib)
}
fetch 4.9.8 common store remoting
fetch 5.5.0 common store remoting auth

# Defaults that depend on the machine show by being read with two numbers of processors.
for cpus in 2 3; do
  (
    unset ROCKETMQ_HOME NAMESRV_ADDR
    # The classes log to standard output while they are loaded, and into the home directory.
    java -XX:ActiveProcessorCount=$cpus -Duser.home="$work/home" "$here/ConfigKeys.java" \
      "$work/keys.$cpus" "4.9.8=$work/4.9.8/lib" "5.5.0=$work/5.5.0/lib" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
  )
done
{
  echo '# Made by scripts/config-keys.sh from RocketMQ 4.9.8 and 5.5.0. Not to be edited.'
  printf '#key\ttype\tclasses 4.9.8\tclasses 5.5.0\tdefault 4.9.8\tdefault 5.5.0\timportant\n'
  paste "$work/keys.2" "$work/keys.3" | sed "s|$work/home|\${user.home}|g" | awk -F'\t' -v OFS='\t' '{
    for (i = 5; i <= 6; i++) if ($i != $(i + 7)) $i = "(by machine)"
    print $1, $2, $3, $4, $5, $6, $7
  }'
} >"$table"
echo "$(grep -vc '^#' "$table") keys in $table"
