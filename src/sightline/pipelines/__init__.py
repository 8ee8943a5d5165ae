"""From a picture and words to something a person can use, with its confidence: answers and captions."""

from sightline.pipelines.answer import Answer, Answered, Choice, Request
from sightline.pipelines.answering import Answerer, Conversation
from sightline.pipelines.examples import Example

__all__ = ["Answer", "Answered", "Answerer", "Choice", "Conversation", "Example", "Request"]
