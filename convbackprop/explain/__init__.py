"""Pictures of what a rung does, made of what its threads are seen to do. See ``topics.explain``."""

from convbackprop.explain.picture import Picture
from convbackprop.explain.topics import TOPICS, explain, topics_of
