"""The rows of the S2I contract: all that source-to-image v1.6.3 does and somebody can see.

Every row has an id, which tests name it by (`tests/contract.py`), the section of the contract, and
a line that says what it is about. `docs/s2i.md` is made of them. Ids of flags, labels, variables
and reasons are those words themselves.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One promise of source-to-image. `section` is the contract's, such as `2.7`."""

    id: str
    section: str
    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that make one table."""

    title: str
    rows: tuple[Row, ...]


def parse_rows(text: str) -> tuple[Row, ...]:
    """Rows out of lines `SECTION ID`, each followed by indented lines of its text.

    Raises `ValueError` for a row without a text and for a text without a row.
    """
    rows: list[Row] = []
    for line in filter(None, text.split("\n")):
        if line[0] != " ":
            section, _, name = line.partition(" ")
            rows.append(Row(name, section, ""))
        elif not rows:
            raise ValueError(f"a text stands before the first row: {line!r}")
        else:
            last = rows[-1]
            rows[-1] = Row(last.id, last.section, f"{last.text} {line.strip()}".lstrip())
    for row in rows:
        if not (row.id and row.section and row.text):
            raise ValueError(f"a row is not whole: {row}")
    return tuple(rows)


_VERBS = """
1.3 build
    `SOURCE BUILDER [TAG]`: makes an image of a source.
1.4 rebuild
    `IMAGE [NEW-TAG]`: builds an image again from what its labels say.
12.1 create
    `NAME DIRECTORY`: writes the skeleton of a builder image.
12.2 generate
    `BUILDER OUTPUT`: a Dockerfile without a source.
12.3 usage
    `BUILDER`: runs the builder's `usage` script.
1.5 version
    Prints the version.
1.5 completion
    `bash` or `zsh`: prints a completion script; any other word or number of words is an error.
1 help
    Lists the verbs, and the flags of a verb.
"""

_EVERYWHERE = """
1.1 --url
    `-U`: the Docker daemon's address.
1.1 --cert
    The certificate that the Docker daemon gets to see.
1.1 --key
    The key of that certificate.
1.1 --ca
    The authority of the Docker daemon's certificate.
1.1 --tls
    TLS for the Docker daemon, without verification.
1.1 --tlsverify
    TLS for the Docker daemon, with verification.
1.1 --loglevel
    0 to 5: how much is told on standard error.
1.1 --help
    `-h`: help of a verb.
"""

_SHARED = """
1.2 --quiet
    `-q`: hides all output that is not an error.
1.2 --incremental
    Starts from what the previous image's `save-artifacts` gives.
1.2 --rm
    Removes the previous image after an incremental build that succeeded.
1.2 --callback-url
    Gets a POST with the outcome.
1.2 --pull-policy
    `-p`: `always`, `never` or `if-not-present` for the builder image; other words are an error.
1.2 --incremental-pull-policy
    The same for the previous image.
1.2 --runtime-pull-policy
    The same for the runtime image.
1.2 --save-temp-dir
    Keeps the working directory.
1.2 --dockercfg-path
    The file with the registries' credentials.
1.2 --destination
    `-d`: where source and scripts are put; it beats the builder's label.
"""

_BUILD = """
1.3 --run
    Runs the image after the build; the exit code tells of it.
1.3 --ignore-submodules
    Leaves the submodules of a git source out.
1.3 --env
    `-e NAME=VALUE`, repeatable: variables for assemble and the image.
1.3 --environment-file
    `-E`: a file of such variables.
1.3 --ref
    `-r`: the branch, tag or commit to check out.
1.3 --assemble-user
    The user that assemble runs as.
1.3 --assemble-runtime-user
    The user that assemble-runtime runs as.
1.3 --context-dir
    The directory of the source that counts.
1.3 --exclude
    A regular expression of paths to leave out; `(^|/)\\.git(/|$)` by default, empty for none.
1.3 --image-scripts-url
    Where the builder's scripts are when a Dockerfile is written and no label says so.
1.3 --scripts-url
    `-s`: where scripts are looked for first.
1.3 --scripts
    The outdated name of `--scripts-url`; it wins, with a warning.
1.3 --location
    `-l`: the outdated name of `--destination`; it wins, with a warning.
1.3 --use-config
    Reads `.s2ifile` of the current directory before, and writes it after.
1.3 --application-name
    `-n`: the label `io.k8s.display-name`.
1.3 --description
    The label `io.k8s.description`.
1.3 --allowed-uids
    `-u`: ranges of user ids that a build may run as.
1.3 --inject
    `-i SRC[:DST]`: files that only the build sees.
1.3 --volume
    `-v SRC:DST[:OPTIONS]`: mounts for assemble and save-artifacts.
1.3 --cap-drop
    Capabilities that the scripts do not have.
1.3 --copy
    `-c`: copies a local git repository as files.
1.3 --runtime-image
    The image that the result goes on in place of the builder.
1.3 --runtime-artifact
    `-a SRC[:DST]`: what moves to the runtime image.
1.3 --network
    The network of the scripts.
1.3 --as-dockerfile
    Writes a Dockerfile and its context in place of an image.
1.3 --keep-symlinks
    Copies links of a local source as links.
1.3 --add-host
    `HOST:IP`: lines of the scripts' `/etc/hosts`.
"""

_OTHER_FLAGS = """
12.2 generate --quiet
    `-q`, as in `build`.
12.2 generate --env
    `-e`: variables of the Dockerfile.
12.2 generate --assemble-user
    The user of the Dockerfile; `1001` by default.
12.2 generate --assemble-runtime-user
    Has no effect.
12.3 usage --location
    `-l`: the outdated name of `--destination`.
"""

_COMMAND_LINE = """
1.3 cli.conflicts
    `--run` or `--runtime-image` with `--as-dockerfile` is told and ends with 0.
1.3 cli.missing-arguments
    Missing arguments show the help and end with 0.
1.3 cli.invalid-tag
    A tag that is no reference is told before anything is done.
1.3 cli.unknown-flag
    An unknown flag, verb or value is an error.
1.3 cli.tag-is-optional
    Without a tag the result has no name.
1.3 cli.short-names
    `img` stands for `docker.io/library/img:latest`, `host:5000/x:t` for itself.
1.3 cli.transports
    A builder may name a transport such as `docker://` or `oci:`; `oci:` crashes s2i.
1.3 cli.tag-and-digest
    A name with a tag and a digest is left as it is, with a warning.
1.3 cli.offline
    The registry is asked for labels also when the builder is local or the policy is `never`.
1.3 cli.env-with-comma
    A value of `-e` with `,` and `=` warns and is not split.
1.4 rebuild.builder-label-required
    An image without `io.openshift.s2i.build.image` cannot be rebuilt.
1.4 rebuild.source-label-required
    An image without `io.openshift.s2i.build.source-location` cannot be rebuilt.
1.4 rebuild.commit
    The recorded branch is built; a tag or a commit is lost.
1.4 rebuild.source-scripts
    Scripts of the source are ignored when the builder names a place for its own.
1.4 rebuild.context-dir
    The context directory comes from its label.
1.4 rebuild.names
    Description and display name come from their labels.
1.4 rebuild.tag
    The result has the new tag, else that of the image.
1.4 rebuild.not-restored
    Variables, injections and volumes of the first build are not known.
1.8 s2ifile.restore
    Positional words come from the file unless two are given; flags of the command line win.
1.8 s2ifile.env
    Stored variables count unless `-e` is given.
1.8 s2ifile.deprecated
    `.stifile` is read when there is no `.s2ifile`.
1.8 s2ifile.mode
    Every changed flag is stored, secrets too, in a file that all may read.
1.9 output.streams
    All output, that of the scripts too, is on standard error.
1.9 output.lines
    Standard output of a script loses its indentation.
1.9 output.secrets
    At level 2 the values of `-e` are shown; only proxies lose their passwords.
1.9 output.machine-readable
    There is no machine-readable output.
1.10 credentials.auths
    Credentials of a registry come from `auths` of the file, by host.
1.10 credentials.helpers
    `credsStore`, `credHelpers` and `identitytoken` are not supported.
1.10 credentials.fallback
    Credentials of Docker Hub are sent to every registry without its own.
1.11 exit.success
    0: success.
1.11 exit.usage
    Arguments that contradict each other end with 0.
1.11 exit.assemble
    A failing assemble ends with 1, and a message that always says 13.
1.11 exit.pull
    An image that cannot be pulled ends with 2.
1.11 exit.signal
    A signal while a container runs ends with 2.
1.11 exit.missing-script
    A required script that is missing ends with 11.
1.11 exit.forbidden-user
    A user that is not allowed ends with 15.
1.11 exit.empty-repository
    An empty git repository ends with 16.
"""

_SOURCE = """
2.1 source.url
    A word with a scheme is a URL; queries are kept.
2.1 source.file-url
    `file:///path` is local; a `file:` URL with a host is refused.
2.1 source.scp
    `user@host:path` is git over ssh.
2.1 source.path
    Everything else is a local path.
2.2 source.fragment
    `#ref` is ignored on the command line.
2.2 source.git-needs-no-copy-flag
    `--copy` means nothing for a source that is far away.
2.2 source.directory-without-git
    A local directory without `.git` is copied.
2.2 source.empty-repository
    A local repository without a commit is refused.
2.2 source.no-git-program
    Without a `git` program a local repository is copied.
2.2 source.committed-only
    Of a local repository only what is committed is built, silently.
2.2 source.worktree
    A linked worktree of git fails.
2.3 source.remote-branch
    A ref may be a branch that only the remote has.
2.3 source.pull-request-ref
    `refs/pull/...` cannot be checked out.
2.3 source.unknown-ref
    A ref that is not there fails the build.
2.3 source.submodules
    Submodules are fetched, also those of submodules.
2.3 source.submodule-failure
    A submodule that cannot be fetched fails the build.
2.3 source.git-context-dir
    Only the context directory's content is built; `.git` is not in it.
2.3 source.git-context-links
    With a context directory links of a clone are followed.
2.3 source.git-credentials
    Credentials, ssh and LFS are the `git` program's.
2.3 source.git-modes
    Files of a clone have the modes 0644 and 0755.
2.4 source.copy-labels
    A copied source has its location as given, and no commit.
2.4 source.credentials-in-url
    A password in the URL stands in the label.
2.5 source.copy-context-dir
    The context directory of a copied source.
2.5 source.recursive-copy
    A source that contains the working directory is refused, by comparing names.
2.5 source.dangling-links
    Links to nowhere stay links.
2.5 source.links-are-followed
    Links are followed unless `--keep-symlinks` is given.
2.5 source.link-loops
    Directories that contain themselves by links fail after 40 levels.
2.5 source.special-files
    A pipe blocks for ever, a socket fails the build.
2.5 source.empty-directories
    Empty directories are copied.
2.5 source.copied-modes
    Modes are kept; times, owners and attributes are not.
2.6 s2iignore.globs
    Lines are globs: `*` and `?` stop at `/`, a leading dot is not special, `**` is `*`.
2.6 s2iignore.comments
    Lines that start with `#` and empty ones say nothing; spaces around a line do not count.
2.6 s2iignore.exceptions
    `!` takes a match out again; nothing below a removed directory.
2.6 s2iignore.place
    The file counts at the root of the context directory only, and stays in the source.
2.6 s2iignore.climbing
    A pattern with `..` removes files of the host.
2.6 s2iignore.scripts
    An ignored script of a copied source becomes an empty one that succeeds.
2.6 s2iignore.odd-directory
    Glob characters in the source's own path break all rules.
2.6 s2iignore.no-source
    Without a source, files of the current directory are removed.
2.7 exclude.default
    `.git` is left out at every depth, `.gitignore` is not.
2.7 exclude.none
    `--exclude ''` brings `.git` into the container.
2.7 exclude.relative-paths
    The expression is matched against paths of the host and not of the source.
2.7 exclude.no-empty-files
    Excluded files of a copied source stay as empty ones.
2.7 exclude.scripts
    The expression removes scripts too.
2.7 exclude.bad-expression
    An expression that is none is an error.
2.8 s2i-directory.other-files
    What is in `.s2i/bin` and is no script stays in the source.
2.8 s2i-directory.sti
    `.sti/bin` is looked into after `.s2i/bin`, with a warning.
2.8 s2i-directory.environment
    `.s2i/environment` stays in the source.
2.9 upload.layout
    `src`, `scripts` and `artifacts` below the destination.
2.9 upload.owner
    The assemble user owns what is uploaded; for root it is the host's user id.
2.9 upload.unreadable
    Files that cannot be read are left out, with a message.
"""

_SCRIPTS = """
3.1 scripts.required
    `assemble` and `run` have to be there.
3.1 scripts.optional
    `save-artifacts` and `assemble-runtime` need not be there.
3.2 scripts.order
    Each script by itself: `--scripts-url`, the source, the builder.
3.2 scripts.image-url-hides-source
    `--scripts-url image://...` counts as found, whatever the source has.
3.3 scripts.url-image
    `image://` names a directory of the image; its scripts are run where they are.
3.3 scripts.url-http
    `http://` and `https://` scripts are downloaded; redirects and proxies count.
3.3 scripts.url-query
    A query in the URL is mangled.
3.3 scripts.url-file
    `file://` scripts are copied, relative ones too.
3.3 scripts.url-other-scheme
    Any other scheme finds nothing.
3.3 scripts.url-invalid
    A `--scripts-url` that is no URL is passed over silently.
3.3 scripts.moved-and-executable
    Scripts of the source are moved to `scripts` and get mode 0755.
3.3 scripts.links
    A script of a clone that is a link is replaced by the builder's, silently.
3.4 scripts.missing
    Missing required scripts are named.
3.4 scripts.nothing-at-url
    A `--scripts-url` that has none of the scripts fails the build.
3.4 scripts.some-at-url
    A `--scripts-url` that has some of them is enough.
3.4 scripts.optional-missing
    A missing optional script is a warning.
3.5 scripts.destination
    The destination is the flag's, the label's, the outdated label's, the variable's, else `/tmp`.
3.5 scripts.mixed-places
    With a partial `--scripts-url` the other scripts are looked for at nonsense paths.
3.5 scripts.careless-urls
    Double and trailing slashes of the builder's URL do not matter; `image://usr/x` is relative.
"""

_ASSEMBLE = """
4.1 assemble.working-directory
    Assemble starts in the image's `WORKDIR`, `/` if there is none.
4.1 assemble.shm
    `/dev/shm` is there, 64 MiB of it.
4.2 assemble.no-arguments
    Assemble gets no arguments and an empty standard input.
4.2 assemble.source-is-writable
    The assemble user may change and remove all of the source, the directory included.
4.2 assemble.environment
    Assemble has the image's variables and the user's; `HOME`, `PATH` and `HOSTNAME` are set.
4.2 assemble.network
    Assemble has a network.
4.2 assemble.special-paths
    Destinations with blanks or quotes break the command line.
4.3 assemble.entrypoint
    The image's `ENTRYPOINT` gets the command line as arguments, against the intent.
4.4 assemble.commit-after-success
    An image is made only after exit code 0.
4.5 assemble.no-time-limit
    Assemble may take as long as it wants.
4.5 assemble.missing-tar
    A builder without `tar` or a shell is built from by a second image.
4.5 assemble.output-is-no-verdict
    An early message such as `npm start: not found` starts a second build.
4.5 assemble.signals
    A signal kills the container; the working directory is left behind.
4.5 pull.retries
    A pull is tried up to seven times when the connection failed.
4.6 assemble.user
    The user is the flag's, the label's, the image's `USER`, else root.
4.6 assemble.user-forms
    Users by name, number and `user:group`, from the image's own files.
4.7 uids.ranges
    `n`, `n-`, `-n` and `n-m`, separated by commas; a second `-u` replaces the first.
4.7 uids.onbuild
    `USER` in `ONBUILD` instructions is checked.
4.7 uids.flag
    A forbidden `--assemble-user` is refused; so is `user:group`.
4.7 uids.label
    A forbidden user of the label is refused, its group aside.
4.7 uids.image
    A forbidden or unnamed `USER`, or one with a name, is refused.
4.7 uids.runtime-image
    The runtime image's user is checked, and the verdict dropped.
4.7 uids.result
    A `USER` that is root passes when the assemble user is allowed.
4.8 onbuild
    A builder with `ONBUILD` is built from with a Dockerfile; errors of that are not seen.
4.9 layered
    The result of a builder without `tar` names a builder that is gone.
4.10 builders.sclorg
    `BASH_ENV` and `ENV` reach the scripts as they are.
"""

_INCREMENTAL = """
5.1 incremental.first
    Without a previous image the build is a clean one and no failure.
5.1 incremental.no-tag
    Without a tag the build is a clean one.
5.1 incremental.no-script
    Without `save-artifacts` the build is a clean one.
5.1 incremental.needs-the-flag
    A previous image alone makes no incremental build.
5.2 incremental.previous-image
    `save-artifacts` runs in the previous image, with that image's variables and `WORKDIR`.
5.2 incremental.user
    It runs as the new build's assemble user.
5.2 incremental.script-of-now
    A script of the source takes effect one build late.
5.2 incremental.environment
    Variables of the new build do not reach it.
5.2 incremental.surroundings
    Volumes, hosts, network and capabilities are those of assemble.
5.3 incremental.tar
    Standard output is a tar; messages go to standard error.
5.3 incremental.padding
    What follows the end of the tar is read to its end.
5.3 incremental.two-archives
    Of several archives one after the other only the first counts.
5.3 incremental.empty
    Empty output is an empty directory of artifacts.
5.3 incremental.modes
    Modes are kept, times of files too, owners not.
5.3 incremental.hard-links
    Hard links become empty files.
5.3 incremental.special-files
    Devices and pipes are left out, with a warning.
5.3 incremental.links
    Absolute links let later members be written anywhere on the host.
5.4 incremental.failure
    A failing `save-artifacts`, or output that is no tar, is a warning and a clean build.
5.4 incremental.partial
    Artifacts of a failed script are used all the same.
5.4 incremental.reason
    A failure reason stays in the result of builds that succeeded.
5.4 incremental.leftovers
    Artifacts that assemble leaves end up in the image.
5.5 rm.same-image
    `--rm` removes the new image when it is the same as the old one.
5.6 incremental.with-runtime-image
    An incremental build on a runtime image is refused.
"""

_RUNTIME = """
6.1 runtime.several-artifacts
    One `-a` may hold several, separated by `;`.
6.1 runtime.artifacts-of-the-label
    Without `-a` the runtime image's label names the artifacts.
6.1 runtime.no-artifacts
    Without any artifact the build fails.
6.1 runtime.mapping-syntax
    Split at the last colon, quotes trimmed, paths cleaned, special characters refused.
6.1 runtime.mapping-rules
    The source has to be absolute, the destination relative and without `..`.
6.1 runtime.user
    The user is the flag's, the label's, else the runtime image's `USER`.
6.2 runtime.destination-is-a-directory
    An artifact goes below the destination, under its own name.
6.2 runtime.destination-like-source
    A destination that starts with the artifact's own name fails.
6.2 runtime.assemble-runtime
    `assemble-runtime` runs in the runtime image with the variables of assemble.
6.2 runtime.assemble-runtime-optional
    Without `assemble-runtime` the build fails.
6.2 runtime.modes
    Directories 0755, files 0755 if the group may execute them, else 0644.
6.2 runtime.owner
    Artifacts belong to the host's user id.
6.2 runtime.marker
    A marker file of the upload stays in `/tmp`.
6.2 runtime.nothing-of-the-builder
    Only artifacts reach the runtime image: no source, no tools.
6.3 runtime.run-script
    `Cmd` is a relative path, or one of the builder's.
6.3 runtime.config
    User, variables, `WORKDIR` and ports are the runtime image's.
6.3 runtime.metadata
    `image_metadata.json` is read from the runtime container.
6.3 runtime.failure
    A failing `assemble-runtime` fails the build.
"""

_INPUTS = """
7.1 inject.directory
    The content of a directory goes to the destination.
7.1 inject.file
    A file becomes the file of the destination; an existing directory there fails.
7.1 inject.default-destination
    Without a destination, and for a relative one, it is the image's `WORKDIR`.
7.1 inject.several
    One `-i` may hold several, separated by `;`.
7.1 inject.missing-parent
    The directory above the destination has to be there.
7.1 inject.modes
    Files get mode 0666, directories 0777.
7.1 inject.links
    Links are followed for the decision what is a file, as Kubernetes makes its secrets.
7.1 inject.control-files
    `/tmp/rm-injections` and `/tmp/injection-result` stay in the image.
7.2 inject.emptied
    Injected files are empty in the image; their names stay.
7.2 inject.truncate-needed
    Without `truncate` in the image, or without the right to it, the build fails.
7.2 inject.after-failure
    Files are emptied after a failed assemble too.
7.3 volume.not-committed
    What is in a mount is not in the image.
7.3 volume.read-only
    `ro` is kept.
7.3 volume.save-artifacts
    `save-artifacts` sees the mounts too.
7.3 volume.invalid
    What is no mount is refused by the daemon.
7.4 env.order
    Image, `.s2i/environment`, `-e`, `-E`: the later wins.
7.4 env.file-beats-flag
    A variable of `-E` beats that of `-e`.
7.4 env.s2i-environment
    `#` in the first column is a comment; no quotes are removed; lines without `=` are skipped.
7.4 env.environment-file
    Lines are trimmed; `#` and `//` are comments; order is by chance.
7.4 env.unreadable-file
    A file of `-E` that cannot be read is a warning.
7.4 env.invalid
    A variable of `-e` without a name or `=` is an error.
7.4 env.duplicates
    A name that is given twice stands twice in the image.
7.4 env.persisted
    All variables of the user are in the image.
7.4 env.build-only
    There is no variable for the build alone.
"""

_IMAGE = """
8.1 image.untagged
    Without a tag the image is reported by its id.
8.2 image.cmd
    `Cmd` is one element, the path of the run script.
8.2 image.entrypoint
    `Entrypoint` is the builder's.
8.2 image.user
    `User` is the builder's, not the assemble user.
8.2 image.user-of-userless
    On a builder without `USER` it is the assemble user.
8.2 image.env
    The user's variables, then those of the builder that have other names.
8.2 image.working-dir
    `WorkingDir` is the builder's.
8.2 image.ports-volumes-signal-health
    Ports, volumes, stop signal and health check are the builder's.
8.2 image.dropped-fields
    `OnBuild` and `Shell` are dropped.
8.2 image.created
    `created` is now.
8.2 image.platform
    Architecture, system and variant are the builder's.
8.2 image.one-layer
    The builder's layers and one more.
8.2 image.deletions
    Removed files are whiteouts.
8.2 image.history
    The builder's history and one entry without values of variables.
8.2 image.below-volumes
    What assemble writes below a `VOLUME` is lost.
8.3 image.leftovers
    `src` and `scripts` stay where they are.
8.3 image.scripts-stay
    `scripts` stays when `Cmd` names the run script there.
8.3 image.nothing-of-the-engine
    `/etc/hosts`, `/etc/resolv.conf` and mount points of the engine are not in the layer.
8.6 image.latest
    A tag without a version gets `:latest`.
8.6 image.tag-with-digest
    A tag with a digest is refused.
8.6 image.push
    Nothing is pushed.
"""

_LABELS_WRITTEN = """
8.4 io.k8s.description
    `--description`, if it is not empty.
8.4 io.k8s.display-name
    `--application-name`, else the tag as typed.
8.4 io.openshift.s2i.build.image
    The builder's full name.
8.4 io.openshift.s2i.build.commit.author
    `Name <mail>` of the commit.
8.4 io.openshift.s2i.build.commit.date
    Its date in git's own form.
8.4 io.openshift.s2i.build.commit.id
    Its hash.
8.4 io.openshift.s2i.build.commit.ref
    Its branch, or `HEAD`.
8.4 io.openshift.s2i.build.commit.message
    Its first line, cut at 80 columns.
8.4 io.openshift.s2i.build.source-location
    Where the source came from.
8.4 io.openshift.s2i.build.source-context-dir
    `--context-dir`, if it is not empty.
"""

_LABELS_READ = """
8.4 io.openshift.s2i.scripts-url
    Where the image's scripts are.
8.4 io.s2i.scripts-url
    Its outdated name, with a warning.
8.4 io.openshift.s2i.destination
    Where source and scripts are put.
8.4 io.s2i.destination
    Its outdated name, with a warning.
8.4 io.openshift.s2i.assemble-user
    Who runs assemble.
8.4 io.openshift.s2i.assemble-runtime-user
    Who runs assemble-runtime.
8.4 io.openshift.s2i.assemble-input-files
    What a runtime image wants from the builder.
8.4 io.openshift.builder-version
    The builder's version, for display.
8.4 io.openshift.builder-base-version
    The version of what the builder is made of, for display.
"""

_LABEL_RULES = """
8.4 labels.inherited
    All labels of the builder are the result's too.
8.4 labels.precedence
    Generated labels beat the builder's, those of assemble beat all.
8.4 labels.limit
    More than 10240 bytes of labels fail the build.
8.5 metadata.labels
    `/tmp/.s2i/image_metadata.json` adds labels; its place does not depend on the destination.
8.5 metadata.absent
    Without the file there are none of it.
8.5 metadata.invalid
    JSON that is none fails the build; other shapes crash s2i.
8.5 metadata.links
    A link in its place reads a file of the host.
8.5 metadata.stays
    The file stays in the image.
"""

_VARIABLES = """
3.2 STI_SCRIPTS_URL
    Variable of the image: the outdated way to say where its scripts are.
3.5 STI_LOCATION
    Variable of the image: the outdated way to say the destination.
1.1 DOCKER_HOST
    The default of `--url`.
1.1 DOCKER_CERT_PATH
    Where the certificate's files are.
1.1 DOCKER_CONFIG
    Where the certificate's files are, but not the credentials.
1.1 DOCKER_TLS
    Any value means `--tls`.
1.1 DOCKER_TLS_VERIFY
    Any value means `--tlsverify`.
3.3 HTTP_PROXY
    `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` count for downloads of scripts.
"""

_DOCKERFILE = """
9.1 dockerfile.path
    `DIR/` stands for `DIR/Dockerfile`; the context is beside it.
9.1 dockerfile.no-engine
    Nothing is run.
9.1 dockerfile.forbidden-user
    The assemble user is checked against `--allowed-uids`.
9.1 dockerfile.inside-the-source
    A Dockerfile inside a copied source is refused.
9.2 dockerfile.incremental
    A first stage from the previous image saves the artifacts.
9.2 dockerfile.incremental-needs-a-tag
    Without a tag that is an error.
9.2 dockerfile.labels
    `LABEL` has the generated labels, in any order, and `$` is expanded.
9.2 dockerfile.env
    `ENV` has the user's variables, escaped.
9.2 dockerfile.scripts
    Scripts of the source or a URL are copied, others are run where they are.
9.2 dockerfile.source
    The source is copied for the assemble user.
9.2 dockerfile.injections
    Injected directories are copied and removed in a later layer.
9.2 dockerfile.assemble
    `RUN` has the assemble script.
9.2 dockerfile.cmd
    `CMD` has the run script, in shell form.
9.2 dockerfile.place-labels
    `--scripts-url` and `--destination` become labels.
9.3 dockerfile.image-scripts
    `--scripts-url`, the label, `--image-scripts-url`, `/usr/libexec/s2i`.
9.4 dockerfile.context
    `upload/src` and `upload/scripts`; `.git` of a clone too.
9.5 dockerfile.default-user
    The assemble user is `1001` when no flag says another, and stays the image's `USER`.
9.5 dockerfile.destination
    The builder's label for the destination is ignored.
9.5 dockerfile.runtime-image
    A runtime image is refused.
9.5 dockerfile.ignored-flags
    Volumes, network, hosts, capabilities and callback are ignored silently.
9.5 dockerfile.again
    Into the same directory a second clone fails and a copy leaves old files.
9.5 dockerfile.same-bytes
    Two times the same input, two different files.
"""

_STATUS = """
10.1 AssembleFailed
    Assemble failed.
10.1 PullBuilderImageFailed
    The builder cannot be had; also for forbidden users.
10.1 PullRuntimeImageFailed
    Never set.
10.1 PullPreviousImageFailed
    There is no previous image; the build goes on.
10.1 ContainerCommitFailed
    The image cannot be made.
10.1 FetchSourceFailed
    The source cannot be had.
10.1 DockerImageBuildFailed
    A Dockerfile of s2i itself cannot be built.
10.1 DockerFileCreationFailed
    A Dockerfile cannot be written.
10.1 InvalidArtifactsMapping
    A wrong `--runtime-artifact`.
10.1 FetchScriptsFailed
    `--scripts-url` has nothing.
10.1 FetchRuntimeArtifactsFailed
    An artifact is not there.
10.1 FileSystemOperationFailed
    The disk refuses.
10.1 InstallScriptsFailed
    A required script is missing.
10.1 GenericS2IBuildFailed
    Everything else.
10.1 OnBuildForbidden
    The builder has `ONBUILD` and it is blocked.
10.1 AssembleUserForbidden
    A forbidden user, with `--as-dockerfile` only.
10.1 AssembleRuntimeFailed
    A failing assemble-runtime has no reason.
10.2 stages.builder
    `PullImages`, with its step for the builder.
10.2 stages.previous
    The step for the previous image, also when it failed.
10.2 stages.runtime
    The step for the runtime image.
10.2 stages.artifacts
    `RetrieveArtifacts`, also when it failed.
10.2 stages.assemble
    `Assemble`, on success only, with the commit's time.
10.2 stages.commit
    `CommitContainer`, before `Assemble` in the list.
10.3 result.document
    The result with success, messages and image id is shown to nobody.
10.4 callback.success
    A POST of JSON: the image's labels and `"success": true`.
10.4 callback.failure
    `"success": false` after a failure of the build.
10.4 callback.early-failure
    Nothing is sent when the builder cannot be had.
10.4 callback.answer
    An answer of 300 or more is a message.
10.4 callback.retries
    Up to three attempts, of which the later have no body.
10.4 callback.exit-code
    The callback never changes the exit code.
"""

_OTHER_VERBS = """
12.1 create.files
    Scripts, Dockerfile, Makefile, README and a test, under fixed names.
12.1 create.existing
    Files that are there are left alone, with a message.
12.1 create.modes
    Scripts are executable; the rest is for the owner alone.
12.1 create.works
    The generated test needs Docker, and a base image that is gone.
12.2 generate.no-source
    `upload/src` is empty: the user puts the source there.
12.2 generate.labels
    The description becomes the destination's label.
12.2 generate.current-directory
    `.s2iignore` of the current directory removes files there.
12.3 usage.script
    The script is found by label, not by `CMD`.
12.3 usage.stdout
    The text goes to standard error, without its indentation.
12.3 usage.leaves-nothing
    The container is committed to an image without a name.
12.3 usage.missing-script
    A builder without the script is an error.
"""

_SECURITY = """
14.3 security.s2iignore
    An ignore file cannot remove what is outside of the source.
14.3 security.archives
    No archive writes through links or outside of its directory.
14.3 security.metadata
    No link in an image makes a file of the host readable.
14.3 security.registry-credentials
    Credentials go to the registry that they are for.
14.3 security.secrets
    Secrets are in no label, log or file that stays.
14.3 security.source-links
    Context directory, copy and injections do not follow links out of the source.
14.3 security.scripts-over-http
    A page that is no script is refused.
14.3 security.git-transports
    `ext::` and `fd::` are refused.
14.3 security.git-refs
    A ref that starts with `-` is no option of git.
14.3 security.allowed-uids
    An image that will run as root does not pass as another user.
"""

VERBS = Group("Verbs", parse_rows(_VERBS))
FLAGS = (
    Group("Flags of every verb", parse_rows(_EVERYWHERE)),
    Group("Flags of `build`, `rebuild` and `usage`", parse_rows(_SHARED)),
    Group("Flags of `build`", parse_rows(_BUILD)),
    Group("Flags of `generate` and `usage`", parse_rows(_OTHER_FLAGS)),
)
LABELS = (
    Group("Labels that are written", parse_rows(_LABELS_WRITTEN)),
    Group("Labels that are read", parse_rows(_LABELS_READ)),
)
VARIABLES = Group("Variables that are read", parse_rows(_VARIABLES))
RULES = (
    Group("Command line, credentials and exit codes", parse_rows(_COMMAND_LINE)),
    Group("Source", parse_rows(_SOURCE)),
    Group("Scripts", parse_rows(_SCRIPTS)),
    Group("Assemble", parse_rows(_ASSEMBLE)),
    Group("Incremental builds", parse_rows(_INCREMENTAL)),
    Group("Runtime images", parse_rows(_RUNTIME)),
    Group("Injections, volumes and variables", parse_rows(_INPUTS)),
    Group("The image", parse_rows(_IMAGE)),
    Group("Rules for labels", parse_rows(_LABEL_RULES)),
    Group("Dockerfiles", parse_rows(_DOCKERFILE)),
    Group("Reasons, stages and the callback", parse_rows(_STATUS)),
    Group("`create`, `generate` and `usage`", parse_rows(_OTHER_VERBS)),
    Group("Security", parse_rows(_SECURITY)),
)
GROUPS = (VERBS, *FLAGS, *LABELS, VARIABLES, *RULES)
