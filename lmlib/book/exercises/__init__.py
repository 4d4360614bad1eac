"""Exercises: a chapter's content, `machinery` that checks answers, `display` that shows them.

`machinery` and the content modules are standard library only, so that answers are checked in the page too.
"""
