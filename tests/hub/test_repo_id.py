"""Names of repositories: taken apart, or refused in one line."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from alignez_bake.errors import BadInputError
from alignez_bake.hub.repo_id import RepoId, check_revision, looks_like_repo_id, parse_repo_id

VALID = ("user/repo", "a/b", "My-Org/Model_1.5-8B", "0/1", "_x/y_", "user/" + "n" * 91)
INVALID = (
    "", "repo", "/", "user/", "/repo", "a/b/c", "./repo", "../repo", "~/repo", "user/re po", "user/répo", "-u/repo",
    "user/repo-", "user/.repo", "user/re--po", "user/re..po", "user/repo.git", "user/" + "n" * 92, "u\n/repo",
    "https://huggingface.co/user/repo", "C:\\user/repo", "user/repo\n",
)  # fmt: skip


@pytest.mark.parametrize("text", VALID)
def test_valid_names_are_taken_apart(text):
    assert parse_repo_id(text) == RepoId(text, None)
    assert looks_like_repo_id(text)
    validate_repo_id(text)


@pytest.mark.parametrize("text", INVALID)
def test_invalid_names_are_refused_in_one_line(text):
    assert not looks_like_repo_id(text)
    with pytest.raises(BadInputError) as caught:
        parse_repo_id(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["user/re po", "-u/repo", "user/repo-", "user/.repo", "user/re--po", "user/repo.git"])
def test_the_client_refuses_them_too(text):
    with pytest.raises(HFValidationError):
        validate_repo_id(text)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "a/b", "0123abc", "release@2"])
def test_revisions(revision):
    assert parse_repo_id(f"user/repo@{revision}") == RepoId("user/repo", revision)
    assert str(RepoId("user/repo", revision)) == f"user/repo@{revision}"


@pytest.mark.parametrize("revision", ["", "-x", "/x", "x/", "a..b", "a b", "a\nb", "a:b", "a~1", "x.lock", ".x", "x."])
def test_invalid_revisions(revision):
    assert not looks_like_repo_id(f"user/repo@{revision}")
    with pytest.raises(BadInputError, match="branch, a tag or a commit"):
        parse_repo_id(f"user/repo@{revision}")
    with pytest.raises(BadInputError):
        check_revision(revision)
